//! What cloudcore holds of an API that has far more objects than its nodes need.

#[path = "support/fleet/mod.rs"]
#[expect(dead_code, unreachable_pub, unused_imports, reason = "the measuring program uses the rest of it")]
mod fleet;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fleet::{ApiSite, Cloudcore, Node};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DynamicObject, PostParams},
};
use kubeedge_cloud::pki::Authority;
use kubeedge_core::message::{Connectivity, Object};
use serde_json::json;
use tokio::time::sleep;

/// How many Secrets there are that nothing refers to, of 10 KiB each; `SECRETS` sets another
/// number, as `cargo xtask soak secrets` does.
const SECRETS: usize = 1000;

const KIB_OF_EACH: u64 = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_that_no_pod_refers_to_take_no_memory_and_one_that_a_pod_begins_to_refer_to_comes_with_it()
-> Result<()> {
    let count = std::env::var("SECRETS").ok().map_or(Ok(SECRETS), |text| text.parse())?;
    let folder = tempfile::tempdir()?;
    let api = ApiSite::start(folder.path()).await?;
    let authority = Authority::create()?;
    let test = std::env::current_exe()?;
    let program = test.ancestors().nth(2).context("cargo puts tests two folders deep")?.join("cloudcore");
    ensure!(program.exists(), "{} is missing: `cargo build --bins` makes it", program.display());
    let mut cloudcore = Cloudcore::prepare(program, &folder.path().join("cloud"), &api, &authority, 10, 4)?;
    cloudcore.spawn()?;
    ready(&cloudcore).await?;
    let empty = cloudcore.rss_kib()?;

    let secrets: Api<Secret> = Api::namespaced(api.client(), "default");
    let create = async |number: usize| {
        let data = "x".repeat(usize::try_from(KIB_OF_EACH)? << 10);
        let secret = serde_json::from_value(json!({
            "metadata": { "name": format!("s-{number}") }, "stringData": { "token": data },
        }))?;
        secrets.create(&PostParams::default(), &secret).await?;
        anyhow::Ok(())
    };
    stream::iter(0..count).map(create).buffer_unordered(16).try_collect::<()>().await?;
    sleep(Duration::from_secs(1)).await;
    let watched = cloudcore.rss_kib()?;
    cloudcore.kill();
    cloudcore.spawn()?;
    ready(&cloudcore).await?;
    let listed = cloudcore.rss_kib()?;
    println!("{count} Secrets: {empty} KiB without, {watched} KiB when watched, {listed} KiB when listed");
    // Buffers of the allocator grow a little with the traffic, whatever is held.
    let bound = empty + (4 << 10) + u64::try_from(count)? * KIB_OF_EACH / 3;
    ensure!(watched < bound && listed < bound, "{empty} KiB became {watched} and {listed}");

    let node = Node::start("edge-1", &authority, &[cloudcore.quic])?;
    node.wait_until(|state| state == Connectivity::Synchronized).await?;
    let pod: Pod = serde_json::from_value(json!({
        "metadata": { "name": "web" },
        "spec": { "nodeName": "edge-1", "containers": [{
            "name": "main", "image": "web", "envFrom": [{ "secretRef": { "name": "s-7" } }],
        }] },
    }))?;
    api.pods().create(&PostParams::default(), &pod).await?;
    let raw: Api<DynamicObject> =
        Api::namespaced_with(api.client(), "default", &ApiResource::erase::<Secret>(&()));
    let secret = raw.get("s-7").await?;
    ensure!(secret.name_any() == "s-7");
    let secret = Object::from_item("v1", "Secret", serde_json::to_vec(&secret)?)?;
    let deadline = Instant::now() + Duration::from_secs(30);
    while !node.holds(&secret) {
        if Instant::now() > deadline {
            bail!("the node was not given the Secret: {}", cloudcore.log());
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn ready(cloudcore: &Cloudcore) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while cloudcore.monitor("/readyz").is_none_or(|(status, _)| status != 200) {
        ensure!(Instant::now() < deadline, "not ready: {}", cloudcore.log());
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
