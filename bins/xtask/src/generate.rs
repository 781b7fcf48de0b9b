//! Rust code from `proto/*.proto`. The code is committed, so that building needs no protobuf compiler.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};

use crate::run::root;

/// Where each description is, where its code goes, and what of it is needed.
const SOURCES: [Source; 4] = [
    Source {
        proto: "kubeedge-core/proto/link.proto",
        out: "kubeedge-core/src/wire/kubeedge.link.v1.rs",
        code: Code::Messages,
    },
    Source {
        proto: "kubeedge-core/proto/cri.proto",
        out: "kubeedge-core/src/runtime/cri/runtime.v1.rs",
        code: Code::Client,
    },
    Source {
        proto: "kubeedge-core/proto/dmi.proto",
        out: "kubeedge-core/src/dmi/v1beta1.rs",
        code: Code::ClientAndServer,
    },
    Source {
        proto: "kubeedge-core/proto/device_plugin.proto",
        out: "kubeedge-core/src/device_plugin/v1beta1.rs",
        code: Code::ClientAndServer,
    },
];

struct Source {
    proto: &'static str,
    out: &'static str,
    code: Code,
}

enum Code {
    Messages,
    /// Messages, and clients of the gRPC services.
    Client,
    /// Both ends of the gRPC services. Maps are ordered, so that the same message always has the same bytes.
    ClientAndServer,
}

/// Generates all code, or only compares it with what is there.
pub(crate) fn run(check: bool) -> Result<()> {
    println!("\n$ cargo xtask gen{}", if check { " --check" } else { "" });
    for source in &SOURCES {
        let code = generate(source).with_context(|| source.proto.to_owned())?;
        let path = root().join(source.out);
        if check {
            if fs::read_to_string(&path).unwrap_or_default() != code {
                bail!("{} is not what {} makes: run `cargo xtask gen`", source.out, source.proto);
            }
        } else {
            fs::write(&path, code).with_context(|| source.out.to_owned())?;
        }
    }
    Ok(())
}

fn generate(source: &Source) -> Result<String> {
    let proto = root().join(source.proto);
    let folder = proto.parent().unwrap_or(Path::new("."));
    let descriptors = protox::compile([&proto], [folder])?;
    let out = tempfile::tempdir()?;
    let out_dir = out.path();
    match source.code {
        Code::Messages => {
            prost_build::Config::new().bytes(["."]).out_dir(out_dir).compile_fds(descriptors)?;
        }
        Code::Client => {
            tonic_prost_build::configure().build_server(false).out_dir(out_dir).compile_fds(descriptors)?;
        }
        Code::ClientAndServer => {
            tonic_prost_build::configure().btree_map(".").out_dir(out_dir).compile_fds(descriptors)?;
        }
    }
    let mut files = fs::read_dir(out.path())?;
    let file = files.next().context("nothing was generated")??;
    Ok(fs::read_to_string(file.path())?)
}
