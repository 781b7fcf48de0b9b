//! TLS of the cloud's end: the handshake, and afterwards no more of it than a connection needs.
//!
//! Once a handshake over QUIC is complete, nothing of TLS is used again but the secrets of which further keys are made
//! (RFC 9001 §6): what the peer has said, its certificates and the state of the handshake are kilobytes that each of
//! thousands of silent connections would hold.

use std::{
    any::Any,
    io::Cursor,
    mem,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use bytes::BytesMut;
use quinn_proto::{
    ConnectionId, Side, TransportError, TransportErrorCode,
    crypto::{
        CryptoError, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, ServerConfig, Session,
        UnsupportedVersion, rustls::QuicServerConfig,
    },
    transport_parameters::TransportParameters,
};
use rustls::{
    CipherSuite,
    pki_types::CertificateDer,
    quic::{KeyChange, PacketKeySet, Secrets, ServerConnection, Suite, Version},
};

/// QUIC version 1 (RFC 9000), the only one that is spoken.
const VERSION_1: u32 = 1;

/// What all connections share.
pub(super) struct SessionConfig {
    /// Signs what asks a client to prove its address.
    retries: QuicServerConfig,
    /// Protects the first packets (RFC 9001 §5.2).
    initial: Suite,
    tls: Arc<rustls::ServerConfig>,
}

impl SessionConfig {
    pub(super) fn new(tls: Arc<rustls::ServerConfig>) -> Result<Self, String> {
        let mut suites = tls.crypto_provider().cipher_suites.iter();
        let initial = suites.find_map(|suite| match (suite.suite(), suite.tls13()) {
            (CipherSuite::TLS13_AES_128_GCM_SHA256, Some(suite)) => suite.quic_suite(),
            (_, _) => None,
        });
        let initial = initial.ok_or("it lacks the cipher suite TLS13_AES_128_GCM_SHA256")?;
        let retries = QuicServerConfig::try_from(tls.clone()).map_err(|error| error.to_string())?;
        // What it depends on is the same for each connection.
        ServerConnection::new(tls.clone(), Version::V1, Vec::new()).map_err(|error| error.to_string())?;
        Ok(Self { retries, initial, tls })
    }
}

impl ServerConfig for SessionConfig {
    fn initial_keys(&self, version: u32, to: &ConnectionId) -> Result<Keys, UnsupportedVersion> {
        if version == VERSION_1 {
            Ok(boxed(self.initial.keys(to, rustls::Side::Server, Version::V1)))
        } else {
            Err(UnsupportedVersion)
        }
    }

    fn retry_tag(&self, version: u32, to: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.retries.retry_tag(version, to, packet)
    }

    fn start_session(self: Arc<Self>, _: u32, parameters: &TransportParameters) -> Box<dyn Session> {
        let mut announced = Vec::new();
        parameters.write(&mut announced);
        let stage = match ServerConnection::new(self.tls.clone(), Version::V1, announced) {
            Ok(handshake) => Stage::Handshake(Box::new(handshake)),
            // The configuration was tried when it was made; without it, nobody is let in.
            Err(_) => Stage::Complete(Mutex::default()),
        };
        Box::new(ServerSession { initial: self.initial, stage, next: Next::None })
    }
}

/// TLS of one connection.
struct ServerSession {
    initial: Suite,
    stage: Stage,
    next: Next,
}

/// Of what the keys are made that replace others.
enum Next {
    None,
    /// Of these, which the handshake has given.
    Of(Box<Secrets>),
    /// Of what comes after the keys that were given last.
    After(Arc<Later>),
}

enum Stage {
    Handshake(Box<ServerConnection>),
    /// The handshake is complete, and this is whom it was with, until that is asked.
    Complete(Mutex<Vec<CertificateDer<'static>>>),
}

impl ServerSession {
    fn handshake(&self) -> Option<&ServerConnection> {
        match &self.stage {
            Stage::Handshake(handshake) => Some(handshake),
            Stage::Complete(_) => None,
        }
    }
}

impl Session for ServerSession {
    fn initial_keys(&self, to: &ConnectionId, _: Side) -> Keys {
        boxed(self.initial.keys(to, rustls::Side::Server, Version::V1))
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        // Nobody asks: whoever was let in speaks the one protocol that is offered.
        None
    }

    /// The certificates as `Vec<CertificateDer>`; once it is connected, they are given away.
    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        let certificates = match &self.stage {
            Stage::Handshake(handshake) => owned(handshake.peer_certificates()?),
            Stage::Complete(certificates) => {
                mem::take(&mut *certificates.lock().unwrap_or_else(PoisonError::into_inner))
            }
        };
        if certificates.is_empty() { None } else { Some(Box::new(certificates)) }
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        // Early data could be replayed, and none is taken.
        None
    }

    fn early_data_accepted(&self) -> Option<bool> {
        None
    }

    fn is_handshaking(&self) -> bool {
        self.handshake().is_some_and(|handshake| handshake.is_handshaking())
    }

    fn read_handshake(&mut self, bytes: &[u8]) -> Result<bool, TransportError> {
        let error = |code, reason| TransportError { code, frame: None, reason };
        let Stage::Handshake(handshake) = &mut self.stage else {
            // A client has nothing to say in TLS once it is connected (RFC 9001 §4.1.3, §6).
            let reason = "TLS goes on after the handshake".to_owned();
            return Err(error(TransportErrorCode::PROTOCOL_VIOLATION, reason));
        };
        handshake.read_hs(bytes).map_err(|refused| match handshake.alert() {
            Some(alert) => error(TransportErrorCode::crypto(alert.into()), refused.to_string()),
            None => error(TransportErrorCode::PROTOCOL_VIOLATION, format!("TLS: {refused}")),
        })?;
        // There are no handshake data to tell of.
        Ok(false)
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        let Some(announced) = self.handshake().and_then(|handshake| handshake.quic_transport_parameters())
        else {
            return Ok(None);
        };
        Ok(Some(TransportParameters::read(Side::Server, &mut Cursor::new(announced))?))
    }

    fn write_handshake(&mut self, bytes: &mut Vec<u8>) -> Option<Keys> {
        let Stage::Handshake(handshake) = &mut self.stage else { return None };
        let Some(change) = handshake.write_hs(bytes) else {
            // All that TLS had to say is written, and it will not say more.
            if !handshake.is_handshaking() {
                let certificates = handshake.peer_certificates().map(owned).unwrap_or_default();
                self.stage = Stage::Complete(Mutex::new(certificates));
            }
            return None;
        };
        Some(boxed(match change {
            KeyChange::Handshake { keys } => keys,
            KeyChange::OneRtt { keys, next } => {
                self.next = Next::Of(Box::new(next));
                keys
            }
        }))
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        let secrets = match mem::replace(&mut self.next, Next::None) {
            Next::None => return None,
            Next::Of(secrets) => *secrets,
            Next::After(given) => given.secrets_after(),
        };
        let later = Arc::new(Later { secrets, keys: OnceLock::new() });
        self.next = Next::After(later.clone());
        let (local, remote) =
            (LaterKey { of: later.clone(), is_local: true }, LaterKey { of: later, is_local: false });
        Some(KeyPair { local: Box::new(local), remote: Box::new(remote) })
    }

    fn is_valid_retry(&self, _: &ConnectionId, _: &[u8], _: &[u8]) -> bool {
        // Only servers send them.
        false
    }

    fn export_keying_material(
        &self,
        _: &mut [u8],
        _: &[u8],
        _: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        // Nothing above the link has keys of its own.
        Err(ExportKeyingMaterialError)
    }
}

/// Keys that take the place of others, made when the first packet needs them.
///
/// Whoever makes them only then takes longer over that packet, which shows that keys are being changed; so RFC 9001 §6.3
/// recommends to make them before. Here that is no secret, and each pair takes a kilobyte, which few connections ever use.
struct Later {
    secrets: Secrets,
    keys: OnceLock<PacketKeySet>,
}

impl Later {
    fn keys(&self) -> &PacketKeySet {
        self.keys.get_or_init(|| self.secrets.clone().next_packet_keys())
    }

    fn secrets_after(&self) -> Secrets {
        let mut secrets = self.secrets.clone();
        drop(secrets.next_packet_keys());
        secrets
    }
}

struct LaterKey {
    of: Arc<Later>,
    is_local: bool,
}

impl LaterKey {
    fn key(&self) -> &impl PacketKey {
        let keys = self.of.keys();
        if self.is_local { &keys.local } else { &keys.remote }
    }
}

impl PacketKey for LaterKey {
    fn encrypt(&self, packet: u64, buffer: &mut [u8], header_len: usize) {
        self.key().encrypt(packet, buffer, header_len);
    }

    fn decrypt(&self, packet: u64, header: &[u8], payload: &mut BytesMut) -> Result<(), CryptoError> {
        self.key().decrypt(packet, header, payload)
    }

    fn tag_len(&self) -> usize {
        self.key().tag_len()
    }

    fn confidentiality_limit(&self) -> u64 {
        self.key().confidentiality_limit()
    }

    fn integrity_limit(&self) -> u64 {
        self.key().integrity_limit()
    }
}

fn boxed(keys: rustls::quic::Keys) -> Keys {
    let (local, remote) = (keys.local, keys.remote);
    Keys {
        header: KeyPair { local: Box::new(local.header), remote: Box::new(remote.header) },
        packet: KeyPair { local: Box::new(local.packet), remote: Box::new(remote.packet) },
    }
}

fn owned(certificates: &[CertificateDer<'_>]) -> Vec<CertificateDer<'static>> {
    certificates.iter().map(|certificate| certificate.clone().into_owned()).collect()
}
