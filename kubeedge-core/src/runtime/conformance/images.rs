//! What the suite expects of images.

use super::Workload;
use crate::runtime::{ContainerRuntime, ImageId, RuntimeError};

pub(super) async fn run(runtime: &impl ContainerRuntime, workload: &Workload) {
    let found = runtime.image(&workload.image).await.expect("image");
    let found = found.expect("the workload's image is here");
    assert!(!found.id.0.is_empty(), "an image has an id: {found:?}");
    runtime
        .remove_image(&ImageId("sha256:absent".into()))
        .await
        .expect("removing an absent image is success");
    let all = runtime.images().await.expect("images");
    let file_systems = runtime.image_file_systems().await.expect("image_file_systems");
    if !workload.keeps_images {
        assert!(all.is_empty() && file_systems.is_empty(), "a runtime without images has none");
        return;
    }
    let listed = all.iter().find(|one| one.id == found.id).expect("an image that is here is listed");
    assert_eq!((&listed.tags, listed.size_bytes), (&found.tags, found.size_bytes), "both say the same of it");
    assert!(!file_systems.is_empty(), "it is known what images take");
    let by_id = runtime.image(&found.id.0).await.expect("image by its id");
    assert_eq!(by_id.map(|one| one.id), Some(found.id), "an image is found by its id");
    assert_eq!(runtime.image("localhost/conformance-absent:1").await.expect("image"), None);
    for malformed in ["", "Not A Name:1", "https://registry/app"] {
        let refused = runtime.pull(malformed, None).await;
        assert!(
            matches!(refused, Err(RuntimeError::Invalid { .. })),
            "{malformed:?} is no name of an image: {refused:?}"
        );
    }
}
