//! A registry with one image: enough of the OCI distribution protocol for a runtime to pull it over plain HTTP.

use std::{
    fs,
    io::{self, BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

const BYTES: &str = "application/octet-stream";
const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

pub(crate) struct Registry {
    port: u16,
    content: Arc<Content>,
}

struct Content {
    manifest: Vec<u8>,
    digest: String,
    config: (String, Vec<u8>),
    layer: (String, PathBuf),
}

impl Registry {
    /// Serves what [`crate::support`] has built of busybox, with another configuration. Repositories below
    /// `open/` are anyone's, those below `secret/` are for ann, and those below `broken/` fail.
    pub(crate) fn start(directory: &Path) -> Self {
        let layer = directory.join("build/busybox/layer.tar");
        let layer_digest = digest(&layer);
        let config = format!(
            r#"{{"architecture": "{}", "os": "linux", "config": {{"User": "1234", "Env": ["PATH=/bin"]}},
                "rootfs": {{"type": "layers", "diff_ids": ["{layer_digest}"]}}}}"#,
            if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        );
        let config_digest = digest_of(directory, "config", config.as_bytes());
        let manifest = format!(
            r#"{{"schemaVersion": 2, "mediaType": "{MANIFEST}",
                "config": {{"mediaType": "application/vnd.docker.container.image.v1+json",
                            "size": {}, "digest": "{config_digest}"}},
                "layers": [{{"mediaType": "application/vnd.docker.image.rootfs.diff.tar",
                             "size": {}, "digest": "{layer_digest}"}}]}}"#,
            config.len(),
            fs::metadata(&layer).unwrap().len(),
        );
        let content = Arc::new(Content {
            digest: digest_of(directory, "manifest", manifest.as_bytes()),
            manifest: manifest.into_bytes(),
            config: (config_digest, config.into_bytes()),
            layer: (layer_digest, layer),
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = Arc::clone(&content);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let content = Arc::clone(&served);
                std::thread::spawn(move || stream.and_then(|stream| content.serve(stream)));
            }
        });
        Self { port, content }
    }

    pub(crate) fn name(&self, repository: &str) -> String {
        format!("127.0.0.1:{}/{repository}", self.port)
    }

    pub(crate) fn digest(&self) -> &str {
        &self.content.digest
    }
}

impl Content {
    fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?);
        loop {
            let (mut first, mut allowed) = (String::new(), false);
            if lines.read_line(&mut first)? == 0 {
                return Ok(());
            }
            loop {
                let mut header = String::new();
                lines.read_line(&mut header)?;
                // "ann:word" in Base64.
                allowed |= header.trim().eq_ignore_ascii_case("authorization: basic YW5uOndvcmQ=");
                if header.trim().is_empty() {
                    break;
                }
            }
            let mut words = first.split(' ');
            let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
            let (status, kind, body) = self.answer(path.split('?').next().unwrap_or(""), allowed);
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nContent-Type: {kind}\r\n\
                 WWW-Authenticate: Basic realm=\"test\"\r\n\r\n",
                body.len(),
            );
            stream.write_all(head.as_bytes())?;
            if method != "HEAD" {
                stream.write_all(&body)?;
            }
        }
    }

    fn answer(&self, path: &str, allowed: bool) -> (&str, &str, Vec<u8>) {
        if path.starts_with("/v2/secret/") && !allowed {
            return ("401 Unauthorized", BYTES, Vec::new());
        }
        if path.starts_with("/v2/broken/") {
            return ("503 Service Unavailable", BYTES, Vec::new());
        }
        if !path.contains("/app/") && path != "/v2/" {
            return ("404 Not Found", BYTES, Vec::new());
        }
        match path.rsplit('/').next().unwrap_or("") {
            name if name == self.config.0 => ("200 OK", BYTES, self.config.1.clone()),
            name if name == self.layer.0 => ("200 OK", BYTES, fs::read(&self.layer.1).unwrap()),
            _ => ("200 OK", MANIFEST, self.manifest.clone()),
        }
    }
}

fn digest_of(directory: &Path, name: &str, bytes: &[u8]) -> String {
    let path = directory.join(name);
    fs::write(&path, bytes).unwrap();
    digest(&path)
}

fn digest(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    format!("sha256:{}", String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap())
}
