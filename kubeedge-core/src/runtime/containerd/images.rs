//! Images over CRI's image service.

use std::path::PathBuf;

use async_trait::async_trait;
use tonic::Request;

use super::{
    Containerd, config, cri,
    errors::{explain_pull, gone_is_success},
    observe::milliseconds,
};
use crate::runtime::{Credentials, FileSystemUsage, Image, ImageId, ImageUser, Images, RuntimeError};

#[async_trait]
impl Images for Containerd {
    async fn image(&self, image: &str) -> Result<Option<Image>, RuntimeError> {
        let request = cri::ImageStatusRequest { image: Some(config::image(image)) };
        let what = || format!("look for image {image}");
        let found = self.call(what, self.images().image_status(Request::new(request))).await?;
        Ok(found.image.map(image_of))
    }

    async fn images(&self) -> Result<Vec<Image>, RuntimeError> {
        let what = || "list images".to_owned();
        let list =
            self.call(what, self.images().list_images(Request::new(cri::ListImagesRequest {}))).await?;
        Ok(list.images.into_iter().map(image_of).collect())
    }

    async fn pull(&self, image: &str, credentials: Option<&Credentials>) -> Result<ImageId, RuntimeError> {
        let auth = credentials.cloned().map(|credentials| cri::AuthConfig {
            username: credentials.username,
            password: credentials.password,
            auth: credentials.auth,
            server_address: credentials.server_address,
            identity_token: credentials.identity_token,
            registry_token: credentials.registry_token,
        });
        let request = cri::PullImageRequest { image: Some(config::image(image)), auth, sandbox_config: None };
        let mut images = self.images();
        let call = images.pull_image(Request::new(request));
        let what = format!("pull image {image}");
        match tokio::time::timeout(self.config.pull_deadline, call).await {
            Ok(Ok(pulled)) => Ok(ImageId(pulled.into_inner().image_ref)),
            Ok(Err(status)) => Err(explain_pull(what, &status)),
            Err(_) => {
                let message = format!("not done within {:?}", self.config.pull_deadline);
                Err(RuntimeError::RegistryUnavailable { what, message })
            }
        }
    }

    async fn remove_image(&self, image: &ImageId) -> Result<(), RuntimeError> {
        let request = cri::RemoveImageRequest { image: Some(config::image(&image.0)) };
        let what = || format!("remove image {image}");
        gone_is_success(self.call(what, self.images().remove_image(Request::new(request))).await)
    }

    async fn image_file_systems(&self) -> Result<Vec<FileSystemUsage>, RuntimeError> {
        let what = || "read what images take".to_owned();
        let request = Request::new(cri::ImageFsInfoRequest {});
        let info = self.call(what, self.images().image_fs_info(request)).await?;
        Ok(info.image_filesystems.into_iter().map(file_system).collect())
    }
}

fn image_of(from: cri::Image) -> Image {
    let name = (!from.username.is_empty()).then_some(ImageUser::Name(from.username));
    Image {
        id: ImageId(from.id),
        tags: from.repo_tags,
        digests: from.repo_digests,
        size_bytes: from.size,
        user: from.uid.map(|uid| ImageUser::Uid(uid.value)).or(name),
        pinned: from.pinned,
    }
}

pub(super) fn file_system(from: cri::FilesystemUsage) -> FileSystemUsage {
    FileSystemUsage {
        at_ms: milliseconds(from.timestamp),
        mountpoint: PathBuf::from(from.fs_id.unwrap_or_default().mountpoint),
        used_bytes: from.used_bytes.unwrap_or_default().value,
        inodes_used: from.inodes_used.map(|used| used.value),
    }
}
