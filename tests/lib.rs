//! What the tests of the whole stand on: sites of real processes, and helpers to look at them.

pub mod api;
pub mod site;

use std::path::PathBuf;

/// The folder of the binaries that this test run has built.
///
/// # Panics
/// If the test binary is not where cargo puts it.
pub fn binaries() -> site::Binaries {
    let test = std::env::current_exe().expect("a test knows its own path");
    // target/debug/deps/<test>: the binaries are one folder up, the examples beside `deps`.
    let folder = test.ancestors().nth(2).expect("cargo puts tests two folders deep").to_owned();
    for binary in ["cloudcore", "edgecore"] {
        let path = folder.join(binary);
        assert!(path.exists(), "{} is missing: `cargo build --bins --examples` makes it", path.display());
    }
    site::Binaries { folder }
}

/// The path of an example that this test run has built.
///
/// # Panics
/// If it has not been built.
pub fn example(name: &str) -> PathBuf {
    let path = binaries().folder.join("examples").join(name);
    assert!(path.exists(), "{} is missing: `cargo build --bins --examples` makes it", path.display());
    path
}
