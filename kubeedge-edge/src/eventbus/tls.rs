//! The way to the external broker through TLS.
//!
//! The client library's own TLS would bring a second, outdated verifier of certificates. So it is given a socket inside
//! this machine, and what it says there goes on through ours.

use std::{io, sync::Arc, time::Duration};

use kubeedge_core::tls::{self, Identity};
use tokio::{
    io::copy_bidirectional,
    net::{TcpStream, UnixListener, UnixStream},
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, pki_types::ServerName},
};

use super::{TlsFiles, external::random};

/// How long the broker may take to accept the connection, and for the handshake.
const CONNECT_MAX: Duration = Duration::from_secs(10);

impl TlsFiles {
    /// Reads the files.
    pub(super) fn client_config(&self) -> Result<ClientConfig, tls::Error> {
        let identity = match &self.identity {
            Some((certificate, key)) => Some(Identity::from_files(certificate, key)?),
            None => None,
        };
        tls::other_client_config(identity.as_ref(), tls::roots_from_file(&self.ca)?)
    }
}

/// A socket of this process, and what is behind it.
#[derive(Debug)]
pub(super) struct Bridge {
    name: String,
    listener: UnixListener,
    config: Arc<ClientConfig>,
}

impl Bridge {
    /// Creates the socket, under a name that is no file.
    pub(super) fn new(config: ClientConfig) -> io::Result<Self> {
        let name = format!("\0kubeedge-mqtt-{:016x}{:016x}", random(), random());
        let listener = UnixListener::bind(&name)?;
        Ok(Self { name, listener, config: Arc::new(config) })
    }

    /// What the client library connects to.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Carries one connection to the broker; returns why it ended.
    pub(super) async fn run(self, host: &str, port: u16) -> io::Error {
        match self.carry(host, port).await {
            Ok(()) => io::ErrorKind::UnexpectedEof.into(),
            Err(error) => error,
        }
    }

    async fn carry(self, host: &str, port: u16) -> io::Result<()> {
        let mut inside = self.accept().await?;
        let late = |_| io::Error::from(io::ErrorKind::TimedOut);
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let socket = timeout(CONNECT_MAX, TcpStream::connect((host, port))).await.map_err(late)??;
        socket.set_nodelay(true)?;
        let connecting = TlsConnector::from(self.config).connect(name, socket);
        let mut outside = timeout(CONNECT_MAX, connecting).await.map_err(late)??;
        copy_bidirectional(&mut inside, &mut outside).await?;
        Ok(())
    }

    /// Waits for the client library, and turns everybody else away.
    async fn accept(&self) -> io::Result<UnixStream> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            let pid = stream.peer_cred()?.pid();
            if pid.and_then(|pid| u32::try_from(pid).ok()) == Some(std::process::id()) {
                return Ok(stream);
            }
            tracing::warn!(?pid, "another process tried to speak to the MQTT broker in our name");
        }
    }
}
