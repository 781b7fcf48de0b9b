//! Images from a registry of the test's own, which speaks the protocol of the OCI.

use std::time::Duration;

use kubeedge_core::runtime::{
    ContainerRuntime, Credentials, ImageUser, Images, RuntimeError, containerd::Containerd,
};

use crate::{adapter, registry::Registry, sandbox, sleeper, support};

pub(crate) async fn run(containerd: &support::Containerd) {
    let registry = Registry::start(containerd.directory());
    let runtime = adapter(containerd);
    an_image_is_pulled_by_tag_and_by_digest(containerd, &runtime, &registry).await;
    credentials_are_given_to_the_registry(&runtime, &registry).await;
    what_fails_is_told_apart(&runtime, &registry).await;
    an_image_that_is_removed_is_gone(&runtime, &registry).await;
}

async fn an_image_is_pulled_by_tag_and_by_digest(
    containerd: &support::Containerd,
    runtime: &Containerd,
    registry: &Registry,
) {
    let tag = registry.name("open/app:1");
    let digest = registry.name(&format!("open/app@{}", registry.digest()));
    let id = runtime.pull(&tag, None).await.unwrap();
    assert_eq!(runtime.pull(&digest, None).await.unwrap(), id);
    let image = runtime.image(&digest).await.unwrap().unwrap();
    assert_eq!(image.id, id);
    assert_eq!((image.tags, image.digests), (vec![tag.clone()], vec![digest.clone()]));
    assert!(image.size_bytes > 500_000);
    assert_eq!(image.user, Some(ImageUser::Uid(1234)));
    let sandbox = runtime.run_sandbox(&sandbox(containerd, "pulled")).await.unwrap();
    let mut config = sleeper("app");
    config.image = tag;
    let container = runtime.create_container(&sandbox, &config).await.unwrap();
    runtime.start_container(&container).await.unwrap();
    let who = ["/bin/sh", "-c", "id -u"].map(str::to_owned);
    let ended = runtime.exec(&container, &who, Duration::from_secs(20)).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&ended.stdout), "1234\n", "it runs as the image says");
    let observed = runtime.observe().await.unwrap();
    assert_eq!(observed[0].containers[0].image_id, digest, "what it runs is named as the registry has it");
    runtime.remove_sandbox(&sandbox).await.unwrap();
}

async fn credentials_are_given_to_the_registry(runtime: &Containerd, registry: &Registry) {
    let image = registry.name("secret/app:1");
    let without = runtime.pull(&image, None).await;
    assert!(matches!(without, Err(RuntimeError::Refused { .. })), "{without:?}");
    let credentials = |password: &str| Credentials {
        username: "ann".into(),
        password: password.into(),
        ..Credentials::default()
    };
    let wrong = runtime.pull(&image, Some(&credentials("guess"))).await;
    assert!(matches!(wrong, Err(RuntimeError::Refused { .. })), "{wrong:?}");
    runtime.pull(&image, Some(&credentials("word"))).await.unwrap();
    // "ann:word", as `docker login` keeps it.
    let auth = Credentials { auth: "YW5uOndvcmQ=".into(), ..Credentials::default() };
    runtime.pull(&image, Some(&auth)).await.unwrap();
}

async fn what_fails_is_told_apart(runtime: &Containerd, registry: &Registry) {
    let absent = runtime.pull(&registry.name("open/absent:1"), None).await;
    assert!(matches!(absent, Err(RuntimeError::NotFound { .. })), "{absent:?}");
    let broken = runtime.pull(&registry.name("broken/app:1"), None).await;
    assert!(matches!(broken, Err(RuntimeError::RegistryUnavailable { .. })), "{broken:?}");
}

async fn an_image_that_is_removed_is_gone(runtime: &Containerd, registry: &Registry) {
    let tag = registry.name("open/app:1");
    let image = runtime.image(&tag).await.unwrap().unwrap();
    runtime.remove_image(&image.id).await.unwrap();
    assert_eq!(runtime.image(&tag).await.unwrap(), None);
    assert!(runtime.images().await.unwrap().iter().all(|one| one.id != image.id));
    runtime.remove_image(&image.id).await.unwrap();
}
