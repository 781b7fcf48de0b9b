//! Requests for serving certificates, made by another library than the one that reads them.

use std::net::IpAddr;

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::json;

use super::{
    super::{Action, Denial, Nothing, Serving, allows},
    node,
};

/// A request of edge-1 as KubeEdge's MetaServer makes it, but for this change.
pub(crate) fn request(change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, "system:node:edge-1");
    params.subject_alt_names = vec![ip("127.0.0.1"), ip("169.254.30.10")];
    change(&mut params);
    params.serialize_request(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

fn ip(address: &str) -> SanType {
    SanType::IpAddress(address.parse::<IpAddr>().unwrap())
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

fn judged(der: &[u8]) -> Result<(), Denial> {
    let serving = Serving::read(der)?;
    allows(&node("edge-1"), Action::Certificate(&serving), &Nothing)
}

type Change = fn(&mut CertificateParams);

#[test]
fn a_node_asks_for_its_own_certificate_for_servers_and_for_no_other() {
    let good: [Change; 3] = [
        |_| {},
        |params| params.subject_alt_names = vec![dns("edge-1"), ip("::1")],
        |params| {
            params.is_ca = IsCa::ExplicitNoCa;
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        },
    ];
    for (number, change) in good.into_iter().enumerate() {
        assert_eq!(judged(&request(change)), Ok(()), "{number}");
    }
    let bad: [(Change, Denial); 14] = [
        (
            |params| params.distinguished_name.push(DnType::CommonName, "system:node:edge-2"),
            Denial::CertificateSubject,
        ),
        (|params| params.distinguished_name.push(DnType::CommonName, "edge-1"), Denial::CertificateSubject),
        (
            |params| params.distinguished_name.push(DnType::OrganizationName, "system:masters"),
            Denial::CertificateSubject,
        ),
        (
            |params| params.distinguished_name.push(DnType::OrganizationalUnitName, "x"),
            Denial::CertificateSubject,
        ),
        (
            |params| assert!(params.distinguished_name.remove(DnType::OrganizationName)),
            Denial::CertificateSubject,
        ),
        (|params| params.subject_alt_names.clear(), Denial::CertificateNames),
        (
            |params| params.subject_alt_names.push(SanType::Rfc822Name("a@b.c".try_into().unwrap())),
            Denial::CertificateNames,
        ),
        (
            |params| params.subject_alt_names.push(SanType::URI("spiffe://a/b".try_into().unwrap())),
            Denial::CertificateNames,
        ),
        (|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained), Denial::CertificateUse),
        (|params| params.key_usages = vec![KeyUsagePurpose::KeyCertSign], Denial::CertificateUse),
        (
            |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
            Denial::CertificateUse,
        ),
        (
            |params| {
                let both = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::Any];
                params.extended_key_usages = both.to_vec();
            },
            Denial::CertificateUse,
        ),
        (
            |params| {
                let other = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 9], vec![5, 0]);
                params.custom_extensions.push(other);
            },
            Denial::CertificateUse,
        ),
        // A second organization beside the right one is another subject.
        (
            |params| {
                let other = DnType::CustomDnType(vec![2, 5, 4, 10]);
                params.distinguished_name.push(other, "system:masters");
            },
            Denial::CertificateSubject,
        ),
    ];
    for (number, (change, denial)) in bad.into_iter().enumerate() {
        assert_eq!(judged(&request(change)), Err(denial), "{number}");
    }
}

#[test]
fn a_request_that_is_none_or_that_its_key_has_not_signed_is_refused() {
    let good = request(|_| {});
    assert_eq!(judged(b"-----BEGIN CERTIFICATE REQUEST-----"), Err(Denial::Unreadable));
    assert_eq!(judged(&[]), Err(Denial::Unreadable));
    assert_eq!(judged(&good[..good.len() - 1]), Err(Denial::Unreadable));
    assert_eq!(judged(&[&good[..], &[0]].concat()), Err(Denial::Unreadable));
    let mut forged = good;
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(judged(&forged), Err(Denial::CertificateProof));
}

#[test]
fn its_names_are_the_nodes_name_and_addresses_and_host_names_that_the_node_says_are_not() {
    let object = json!({ "status": { "addresses": [
        { "type": "InternalIP", "address": "192.0.2.7" }, { "type": "InternalIP", "address": "2001:db8::7" },
        { "type": "Hostname", "address": "kubernetes.default.svc" },
    ] } });
    let judged = |name: SanType, object: &serde_json::Value| {
        let asked = request(|params| params.subject_alt_names = vec![ip("127.0.0.1"), name]);
        Serving::read(&asked).unwrap().check_names(&node("edge-1"), object)
    };
    for own in [ip("192.0.2.7"), ip("2001:db8::7"), ip("::1"), ip("169.254.30.10"), dns("edge-1")] {
        assert_eq!(judged(own.clone(), &object), Ok(()), "{own:?}");
    }
    let others = [
        ip("192.0.2.8"),
        ip("10.96.0.1"),
        ip("2001:db8::8"),
        ip("0.0.0.0"),
        dns("kubernetes.default.svc"),
        dns("edge-2"),
        dns("*"),
        dns("192.0.2.7"),
        dns("localhost"),
    ];
    for other in others {
        assert_eq!(judged(other.clone(), &object), Err(Denial::CertificateNames), "{other:?}");
    }
    assert_eq!(judged(ip("192.0.2.7"), &json!({})), Err(Denial::CertificateNames));
}

#[test]
fn a_node_that_is_named_like_a_service_or_like_every_machine_gets_no_certificate_for_that() {
    let of_itself = |name: &str| {
        let asked = request(|params| params.subject_alt_names = vec![dns(name)]);
        Serving::read(&asked).unwrap().check_names(&node(name), &json!({}))
    };
    for name in ["edge-1", "edge-1.site.example.com", "kubernetes-1", "svc", "svc.example.com", "localhost-1"]
    {
        assert_eq!(of_itself(name), Ok(()), "{name}");
    }
    for name in [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "cloudcore.kubeedge.svc",
        "cloudcore.kubeedge.svc.cluster.local",
        "localhost",
        "a.localhost",
    ] {
        assert_eq!(of_itself(name), Err(Denial::CertificateNames), "{name}");
    }
}

#[test]
fn keys_are_enciphered_with_rsa_alone() {
    assert_eq!(Serving::read(&request(|_| {})).unwrap().usages(), ["digital signature", "server auth"]);
    let pem = include_str!("rsa.csr");
    let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let der = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, base64).unwrap();
    let rsa = Serving::read(&der).unwrap();
    assert_eq!(allows(&node("edge-1"), Action::Certificate(&rsa), &Nothing), Ok(()));
    assert_eq!(rsa.usages(), ["digital signature", "key encipherment", "server auth"]);
    let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, pem);
    assert_eq!(rsa.encoded(), encoded, "openssl writes it the same way");
}
