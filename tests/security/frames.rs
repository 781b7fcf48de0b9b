//! Frames on the link whose length is a lie, in both directions.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, bail, ensure};
use kubeedge_cloud::pki::{Authority, Issued};
use kubeedge_core::{
    tls::{self, Identity},
    transport::{
        Listener, Transport, TransportError,
        quic::{ALPN, QuicConfig, QuicListener, QuicListenerConfig, QuicTransport},
    },
};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

/// The lane of large objects, and a frame of 4 GiB that never comes.
const LIE: [u8; 5] = [3, 0xff, 0xff, 0xff, 0xff];

struct Pki {
    authority: Authority,
    server: Issued,
    node: Issued,
}

impl Pki {
    fn new() -> Result<Self> {
        let (authority, hour) = (Authority::create()?, Duration::from_secs(3600));
        let server = authority.issue_server(&["127.0.0.1".into()], hour)?;
        let node = authority.issue_node(&"edge-1".parse()?, hour)?;
        Ok(Self { authority, server, node })
    }

    fn roots(&self) -> Result<tls::RootCertStore> {
        Ok(tls::roots_from_pem(self.authority.certificate_pem().as_bytes())?)
    }

    fn client(&self) -> Result<rustls::ClientConfig> {
        Ok(tls::client_config(&identity(&self.node)?, self.roots()?)?)
    }

    fn server(&self) -> Result<rustls::ServerConfig> {
        Ok(tls::server_config(&identity(&self.server)?, self.roots()?)?)
    }
}

fn identity(issued: &Issued) -> Result<Identity> {
    Ok(Identity::from_pem(issued.certificate_pem.as_bytes(), issued.key_pem.as_bytes())?)
}

/// A node that speaks QUIC and nothing else of ours.
async fn raw_client(pki: &Pki, server: &str) -> Result<(quinn::Endpoint, quinn::Connection)> {
    let mut tls = pki.client()?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse()?)?;
    let connection = endpoint.connect_with(config, server.parse()?, "127.0.0.1")?.await?;
    Ok((endpoint, connection))
}

async fn lies_to_the_cloud(bytes: &[u8]) -> Result<TransportError> {
    let pki = Pki::new()?;
    let listener =
        QuicListener::bind("127.0.0.1:0".parse()?, Arc::new(pki.server()?), QuicListenerConfig::default())?;
    let address = listener.local_address();
    let (accepted, dialled) = tokio::join!(listener.accept(), raw_client(&pki, &address));
    let (connection, (_endpoint, peer)) = (accepted?, dialled?);
    peer.open_uni().await?.write_all(bytes).await?;
    match timeout(PATIENCE, connection.recv()).await? {
        Err(error) => Ok(error),
        Ok(frame) => bail!("{frame:?}"),
    }
}

#[tokio::test]
async fn cve_2026_62370_a_length_that_a_node_announces_is_checked_before_memory_is_taken() -> Result<()> {
    for lane in 0..4 {
        let error = lies_to_the_cloud(&[lane, 0xff, 0xff, 0xff, 0xff]).await?;
        ensure!(matches!(error, TransportError::TooLong { length: 0xffff_ffff, .. }), "lane {lane}: {error}");
    }
    Ok(())
}

#[tokio::test]
async fn cve_2022_31079_a_stream_of_a_node_that_is_no_message_ends_the_connection() -> Result<()> {
    // A lane that is not known, so that nobody would ever read it.
    let error = lies_to_the_cloud(&[0xee, 0, 0, 0, 1, 0]).await?;
    ensure!(matches!(error, TransportError::Malformed(_)), "{error}");
    Ok(())
}

#[tokio::test]
async fn cve_2022_31080_a_length_that_a_cloud_announces_is_checked_before_memory_is_taken() -> Result<()> {
    let pki = Pki::new()?;
    let mut tls = pki.server()?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    let endpoint = quinn::Endpoint::server(config, "127.0.0.1:0".parse()?)?;
    let address = endpoint.local_addr()?;
    let cloud = tokio::spawn(async move {
        let Some(incoming) = endpoint.accept().await else { bail!("no edge came") };
        let connection = incoming.await?;
        // A first byte tells the edge that it is accepted.
        let mut heartbeat = connection.open_uni().await?;
        heartbeat.write_all(&[0]).await?;
        let mut bulk = connection.open_uni().await?;
        bulk.write_all(&LIE).await?;
        connection.closed().await;
        Ok(())
    });
    let transport = QuicTransport::new(QuicConfig::new(address.to_string(), Arc::new(pki.client()?)))?;
    let connection = timeout(PATIENCE, transport.connect()).await??;
    match timeout(PATIENCE, connection.recv()).await? {
        Err(TransportError::TooLong { length: 0xffff_ffff, .. }) => {}
        other => bail!("{other:?}"),
    }
    drop(connection);
    timeout(PATIENCE, cloud).await???;
    Ok(())
}
