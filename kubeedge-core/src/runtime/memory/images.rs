//! Images that are only names.

use std::path::PathBuf;

use async_trait::async_trait;

use super::{MemoryRuntime, State, now_ms};
use crate::runtime::{Credentials, FileSystemUsage, Image, ImageId, Images, RuntimeError};

impl MemoryRuntime {
    /// Puts an image in place, as if it had been pulled.
    pub fn add_image(&self, image: &str) {
        self.lock().images.insert(image.to_owned(), made(image));
    }

    /// Puts an image in place that says more of itself. It is found by its first tag, its digests and its id.
    pub fn put_image(&self, image: Image) {
        let name = image.tags.first().cloned().unwrap_or_else(|| image.id.0.clone());
        self.lock().images.insert(name, image);
    }

    /// Makes the next `times` pulls of `image` fail as if its registry could not be reached, with `message`.
    pub fn fail_pulls(&self, image: &str, message: &str, times: u32) {
        let (what, message) = (format!("pull image {image}"), message.to_owned());
        self.fail_pulls_with(image, RuntimeError::RegistryUnavailable { what, message }, times);
    }

    /// Makes the next `times` pulls of `image` fail with this error.
    pub fn fail_pulls_with(&self, image: &str, error: RuntimeError, times: u32) {
        self.lock().pull_failures.insert(image.to_owned(), (error, times));
    }

    /// How often `image` was pulled, failures included.
    pub fn pulls(&self, image: &str) -> u32 {
        self.lock().pulls.get(image).copied().unwrap_or(0)
    }

    /// What the last pull of `image` was done with.
    pub fn pulled_with(&self, image: &str) -> Option<Credentials> {
        self.lock().credentials.get(image).cloned().flatten()
    }
}

impl State {
    pub(super) fn image(&self, name: &str) -> Option<&Image> {
        let named = |image: &&Image| {
            let has = |names: &[String]| names.iter().any(|one| one == name);
            image.id.0 == name || has(&image.tags) || has(&image.digests)
        };
        self.images.get(name).or_else(|| self.images.values().find(named))
    }
}

#[async_trait]
impl Images for MemoryRuntime {
    async fn image(&self, image: &str) -> Result<Option<Image>, RuntimeError> {
        let what = format!("look for image {image}");
        let state = self.open(&what)?;
        check(what, image)?;
        Ok(state.image(image).cloned())
    }

    async fn images(&self) -> Result<Vec<Image>, RuntimeError> {
        Ok(self.open("list images")?.images.values().cloned().collect())
    }

    async fn pull(&self, image: &str, credentials: Option<&Credentials>) -> Result<ImageId, RuntimeError> {
        let what = format!("pull image {image}");
        let mut state = self.open(&what)?;
        *state.pulls.entry(image.to_owned()).or_default() += 1;
        state.credentials.insert(image.to_owned(), credentials.cloned());
        check(what, image)?;
        if let Some((error, times)) = state.pull_failures.get_mut(image)
            && *times > 0
        {
            *times -= 1;
            return Err(error.clone());
        }
        Ok(state.images.entry(image.to_owned()).or_insert_with(|| made(image)).id.clone())
    }

    async fn remove_image(&self, image: &ImageId) -> Result<(), RuntimeError> {
        self.open("remove an image")?.images.retain(|_, one| one.id != *image);
        Ok(())
    }

    async fn image_file_systems(&self) -> Result<Vec<FileSystemUsage>, RuntimeError> {
        let state = self.open("read what images take")?;
        Ok(vec![FileSystemUsage {
            at_ms: now_ms(),
            mountpoint: PathBuf::from("/"),
            used_bytes: state.images.values().map(|image| image.size_bytes).sum(),
            inodes_used: Some(state.images.len() as u64),
        }])
    }
}

fn made(image: &str) -> Image {
    Image { id: ImageId(format!("sha256:{image}")), tags: vec![image.to_owned()], ..Image::default() }
}

/// The least of what every registry wants of a name.
fn check(what: String, image: &str) -> Result<(), RuntimeError> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-/:@".contains(c);
    let name = image.rsplit_once(['@', ':']).map_or(image, |(name, _)| name);
    let odd = name.is_empty() || name.starts_with(['/', '-', '.']) || image.contains("//");
    if odd || !name.chars().all(fits) {
        let message = format!("{image:?} is no name of an image");
        return Err(RuntimeError::Invalid { what, message });
    }
    Ok(())
}
