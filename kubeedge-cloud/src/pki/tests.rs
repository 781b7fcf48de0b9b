use std::{fs, os::unix::fs::PermissionsExt, sync::Arc};

use kubeedge_core::{
    tls::{self, Identity},
    transport::{
        Listener, Peer, Transport, TransportError,
        quic::{QuicConfig, QuicListener, QuicListenerConfig, QuicTransport},
    },
};

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn identity(issued: &Issued) -> Identity {
    Identity::from_pem(issued.certificate_pem.as_bytes(), issued.key_pem.as_bytes()).unwrap()
}

fn node() -> NodeName {
    "edge-1".parse().unwrap()
}

/// Lets a node and a server of the authorities meet on loopback.
async fn meet(
    of_server: &Authority,
    server: &Issued,
    of_node: &Authority,
    node: &Issued,
) -> Result<Peer, TransportError> {
    let roots = |authority: &Authority| tls::roots_from_pem(authority.certificate_pem().as_bytes()).unwrap();
    let server = Arc::new(tls::server_config(&identity(server), roots(of_server)).unwrap());
    let any_port = "127.0.0.1:0".parse().unwrap();
    let listener = QuicListener::bind(any_port, server, QuicListenerConfig::default()).unwrap();
    let client = Arc::new(tls::client_config(&identity(node), roots(of_node)).unwrap());
    let transport = QuicTransport::new(QuicConfig::new(listener.local_address(), client)).unwrap();
    let accepted = async { Ok(listener.accept().await?.peer().clone()) };
    let dialled = async {
        let _open = transport.connect().await?;
        std::future::pending::<Result<(), TransportError>>().await
    };
    tokio::select! {
        peer = accepted => peer,
        Err(error) = dialled => Err(error),
    }
}

#[tokio::test]
async fn a_node_and_a_server_of_one_authority_meet() {
    let authority = Authority::create().unwrap();
    let server = authority.issue_server(&["cloud.example".into(), "127.0.0.1".into()], DAY).unwrap();
    let edge = authority.issue_node(&node(), DAY).unwrap();
    assert_eq!(meet(&authority, &server, &authority, &edge).await.unwrap(), Peer::Node(node()));
}

#[tokio::test]
async fn a_node_is_no_server_and_a_server_is_no_node() {
    let authority = Authority::create().unwrap();
    let server = authority.issue_server(&["127.0.0.1".into()], DAY).unwrap();
    let edge = authority.issue_node(&node(), DAY).unwrap();
    meet(&authority, &edge, &authority, &edge).await.unwrap_err();
    meet(&authority, &server, &authority, &server).await.unwrap_err();
}

#[tokio::test]
async fn a_cloud_is_taken_for_no_node() {
    let authority = Authority::create().unwrap();
    let server = authority.issue_server(&["127.0.0.1".into()], DAY).unwrap();
    let cloud = authority.issue_cloud("cloud-1", &["127.0.0.1".into()], DAY).unwrap();
    assert_eq!(tls::cloud_of(identity(&cloud).certificate()).unwrap(), "cloud-1");
    meet(&authority, &server, &authority, &cloud).await.unwrap_err();
    assert!(matches!(authority.issue_cloud("", &[], DAY), Err(Error::NoName)));
    assert!(authority.issue_cloud("cloud-1", &["ümlaut".into()], DAY).is_err());
}

#[tokio::test]
async fn authorities_do_not_trust_each_other() {
    let (one, other) = (Authority::create().unwrap(), Authority::create().unwrap());
    let server = one.issue_server(&["127.0.0.1".into()], DAY).unwrap();
    let edge = other.issue_node(&node(), DAY).unwrap();
    meet(&one, &server, &one, &edge).await.unwrap_err();
}

/// A certificate as PEM.
#[allow(dead_code, reason = "the tests of enrollment use it")]
pub(crate) fn pem_of(certificate: &[u8]) -> String {
    super::pem("CERTIFICATE", certificate)
}

/// An authority's own key as PEM, for who tries to pass for a node with it.
#[allow(dead_code, reason = "the tests of enrollment use it")]
pub(crate) fn key_pem_of(authority: &Authority) -> String {
    authority.issuer.key().serialize_pem()
}

#[test]
fn an_authority_reads_back_as_kubeedge_keeps_it() {
    for authority in [Authority::create().unwrap(), Authority::from_pem(SEC1_CERTIFICATE, SEC1_KEY).unwrap()]
    {
        let (certificate, key) = (authority.certificate_der().unwrap(), authority.key_sec1_der().unwrap());
        let again = Authority::from_der(&certificate, &key).unwrap();
        assert_eq!(again.certificate_der().unwrap(), certificate);
        assert_eq!(again.key_sec1_der().unwrap(), key);
        assert_eq!(super::pem("EC PRIVATE KEY", &key).lines().next(), SEC1_KEY.lines().next());
    }
    let known = Authority::from_pem(SEC1_CERTIFICATE, SEC1_KEY).unwrap();
    assert_eq!(
        super::pem("EC PRIVATE KEY", &known.key_sec1_der().unwrap()),
        SEC1_KEY,
        "as Go has written it"
    );
}

#[test]
fn an_authority_is_created_once_and_opened_afterwards() {
    let directory = tempfile::tempdir().unwrap();
    let created = Authority::open_or_create(directory.path()).unwrap();
    let key = directory.path().join(KEY_FILE);
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    let opened = Authority::open_or_create(directory.path()).unwrap();
    assert_eq!(created.certificate_pem(), opened.certificate_pem());
    let names: Vec<_> =
        fs::read_dir(directory.path().join("ca")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "no drafts are left: {names:?}");
}

#[tokio::test]
async fn a_key_that_a_crash_left_alone_goes_on_with_a_certificate_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let before = Authority::open_or_create(directory.path()).unwrap();
    let edge = before.issue_node(&node(), DAY).unwrap();
    fs::remove_file(directory.path().join(CERTIFICATE_FILE)).unwrap();
    let after = Authority::open_or_create(directory.path()).unwrap();
    let server = after.issue_server(&["127.0.0.1".into()], DAY).unwrap();
    meet(&after, &server, &after, &edge).await.unwrap();
}

#[test]
fn an_authority_takes_the_place_of_another_and_a_crash_between_the_files_leaves_one_of_them() {
    let directory = tempfile::tempdir().unwrap();
    let at = |file| directory.path().join(file);
    let before = Authority::open_or_create(directory.path()).unwrap();
    let after = Authority::create().unwrap();
    assert!(before.is_among(before.certificate_pem()) && !after.is_among(before.certificate_pem()));
    after.save(&at(CERTIFICATE_FILE), &at(KEY_FILE)).unwrap();
    let opened = Authority::open_or_create(directory.path()).unwrap();
    assert_eq!(opened.certificate_pem(), after.certificate_pem());
    // The power is cut after the key: its certificate is not there yet, nor that of the key before.
    fs::remove_file(at(CERTIFICATE_FILE)).unwrap();
    let resumed = Authority::open_or_create(directory.path()).unwrap();
    assert!(after.is_among(resumed.certificate_pem()));
}

#[test]
fn a_certificate_without_its_key_is_an_error_that_names_the_key() {
    let directory = tempfile::tempdir().unwrap();
    Authority::open_or_create(directory.path()).unwrap();
    fs::remove_file(directory.path().join(KEY_FILE)).unwrap();
    let error = Authority::open_or_create(directory.path()).unwrap_err();
    assert!(error.to_string().contains("rootCA.key"), "{error}");
    assert!(!directory.path().join(KEY_FILE).exists(), "nothing is overwritten");
}

#[test]
fn a_key_of_another_authority_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = (directory.path().join("ca.crt"), directory.path().join("ca.key"));
    Authority::create().unwrap().save(&certificate, &key).unwrap();
    Authority::load(&certificate, &key).unwrap();
    Authority::create().unwrap().save(&directory.path().join("other.crt"), &key).unwrap();
    let error = Authority::load(&certificate, &key).unwrap_err();
    assert!(error.to_string().contains("does not belong"), "{error}");
    fs::write(&key, "no key").unwrap();
    let error = Authority::load(&certificate, &key).unwrap_err();
    assert!(error.to_string().contains("ca.key"), "{error}");
}

#[tokio::test]
async fn an_authority_with_a_key_in_the_form_of_go_is_read() {
    let authority = Authority::from_pem(SEC1_CERTIFICATE, SEC1_KEY).unwrap();
    let server = authority.issue_server(&["127.0.0.1".into()], DAY).unwrap();
    let edge = authority.issue_node(&node(), DAY).unwrap();
    assert_eq!(meet(&authority, &server, &authority, &edge).await.unwrap(), Peer::Node(node()));
}

#[test]
fn certificates_need_names_and_may_last_for_as_long_as_can_be_written() {
    let authority = Authority::create().unwrap();
    assert!(matches!(authority.issue_server(&[], DAY), Err(Error::NoName)));
    assert!(authority.issue_server(&["ümlaut".into()], DAY).is_err());
    authority.issue_node(&node(), Duration::MAX).unwrap();
}

#[test]
fn keys_do_not_print() {
    let authority = Authority::create().unwrap();
    let issued = authority.issue_node(&node(), DAY).unwrap();
    assert!(!format!("{authority:?} {issued:?}").contains("PRIVATE"));
}

/// An authority's key as Go's `x509.MarshalECPrivateKey` writes it, made for this test only.
const SEC1_KEY: &str = "\
-----BEGIN EC PRIVATE KEY-----
MHcCAQEEICwB/wAXlZqzRhigKAeNzDjGOShvnAwyaIEzeb+aaId6oAoGCCqGSM49
AwEHoUQDQgAE6kElLoqO3+LvnWuyot6mAQg5mzxqCIExipyJtV3DX8fecxvxvN+b
Uo1LxFYZgdn3PHtwg5KeEXFfBN85sssBHw==
-----END EC PRIVATE KEY-----
";

const SEC1_CERTIFICATE: &str = "\
-----BEGIN CERTIFICATE-----
MIIBfTCCASOgAwIBAgIUYXiez98S63S9zZHCf8Ji//9xihwwCgYIKoZIzj0EAwIw
EzERMA8GA1UEAwwIS3ViZUVkZ2UwIBcNMjYxMTIzMTgxMDMyWhgPMjEyNjEwMzAx
ODEwMzJaMBMxETAPBgNVBAMMCEt1YmVFZGdlMFkwEwYHKoZIzj0CAQYIKoZIzj0D
AQcDQgAE6kElLoqO3+LvnWuyot6mAQg5mzxqCIExipyJtV3DX8fecxvxvN+bUo1L
xFYZgdn3PHtwg5KeEXFfBN85sssBH6NTMFEwHQYDVR0OBBYEFI7ZINNuIW2Tonr5
tQFiOq57uGkIMB8GA1UdIwQYMBaAFI7ZINNuIW2Tonr5tQFiOq57uGkIMA8GA1Ud
EwEB/wQFMAMBAf8wCgYIKoZIzj0EAwIDSAAwRQIgW4Sn9edOmJa2bRxqMIZOKj4O
+pF4LzRENjoetPfPVaICIQCxrXiJihdehv/VQo3qlxTkCHAyaA4yTKOuB6uK6BBq
qg==
-----END CERTIFICATE-----
";
