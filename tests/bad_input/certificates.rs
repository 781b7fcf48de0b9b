//! Certificates for servers on a node, which the cluster signs where there is one.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use bytes::Bytes;
use kubeedge_core::{
    hub::Frame,
    message::{Answer, CertificateRequest, Query},
};
use kubeedge_tests::{
    binaries,
    site::{Cloud, cluster},
};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use serde_json::Value;

use crate::peer::{Peer, Way};

const NODE: &str =
    "apiVersion: v1\nkind: Node\nmetadata: {name: edge-1, labels: {node-role.kubernetes.io/edge: ''}}\n";

fn request(of: &str, names: &[&str]) -> Result<Bytes> {
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, format!("system:node:{of}"));
    Ok(params.serialize_request(&KeyPair::generate()?)?.der().to_vec().into())
}

async fn ask(peer: &Peer, id: u64, pkcs10: &Bytes) -> Result<Answer> {
    let query = Query::Certificate(CertificateRequest { pkcs10: pkcs10.clone() });
    peer.send(&Frame::Query { id, query }).await?;
    loop {
        match peer.next().await? {
            Some(Frame::Answer { id: of, answer }) if of == id => return Ok(answer),
            Some(_) => {}
            None => bail!("the cloud has ended the session"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_gets_a_certificate_for_its_servers_and_none_for_anothers() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let cloud = Cloud::start(&binaries(), &folder.path().join("cloud"))?;
    cloud.apply(NODE)?;
    let peer = Peer::begin(Way::Quic, &cloud, "edge-1").await?;
    for (id, of, names) in [(1, "edge-2", ["127.0.0.1"]), (2, "edge-1", ["kubernetes.default.svc"])] {
        let answer = ask(&peer, id, &request(of, &names)?).await?;
        ensure!(matches!(&answer, Answer::Refused(why) if why.contains("certificate-")), "{answer:?}");
    }
    let requests = || cloud.kubectl(&["get", "certificatesigningrequests", "-o", "name"]);
    ensure!(!requests()?.contains("metaserver-csr-"), "{}", requests()?);

    let pkcs10 = request("edge-1", &["127.0.0.1", "169.254.30.10", "edge-1"])?;
    let mut given = Value::Null;
    for id in 3..33 {
        given = match ask(&peer, id, &pkcs10).await? {
            Answer::Object(object) => serde_json::from_slice(&object.json)?,
            other @ (Answer::NotFound | Answer::Refused(_) | Answer::Token(_)) => {
                bail!("{other:?}\n{}", cloud.log())
            }
        };
        ensure!(given["metadata"]["name"] == "metaserver-csr-edge-1", "{given}");
        ensure!(given["status"]["conditions"][0]["type"] == "Approved", "{given}");
        // The standalone API signs none.
        if cluster::admin().is_none() || given["status"]["certificate"].is_string() {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    cloud.kubectl(&["delete", "certificatesigningrequest", "metaserver-csr-edge-1"])?;
    let signed = given["status"]["certificate"].is_string();
    ensure!(signed == cluster::admin().is_some(), "{given}");
    ensure!(!cloud.log().contains("forbidden"), "{}", cloud.log());
    Ok(())
}
