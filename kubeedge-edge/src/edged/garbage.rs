//! Images that nobody uses any more. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use kubeedge_core::runtime::{Image, ImageId, ObservedSandbox};

use super::{ImageCollection, eviction::Level};

/// Remembers since when images are here, and when each was last used.
#[derive(Debug)]
pub(crate) struct Images {
    config: ImageCollection,
    /// The image of sandboxes, which no container shows.
    sandbox_image: String,
    known: BTreeMap<ImageId, Known>,
}

#[derive(Debug, Clone)]
struct Known {
    size: i64,
    since: Instant,
    /// When a container that used it was last seen; since it is known, if there was none.
    used: Instant,
    kept: bool,
}

impl Images {
    pub(crate) fn new(config: ImageCollection, sandbox_image: &str) -> Self {
        Self { config, sandbox_image: sandbox_image.to_owned(), known: BTreeMap::new() }
    }

    /// Takes which images are here, and which containers, dead ones too.
    pub(crate) fn handle_images<'a>(
        &mut self,
        images: &[Image],
        sandboxes: impl Iterator<Item = &'a ObservedSandbox>,
        now: Instant,
    ) {
        let containers = sandboxes.flat_map(|sandbox| &sandbox.containers);
        let in_use: BTreeSet<&str> =
            containers.flat_map(|one| [one.image_id.as_str(), one.image.as_str()]).collect();
        let names = |image: &Image, known: &dyn Fn(&str) -> bool| {
            image.tags.iter().chain(&image.digests).chain([&image.id.0]).any(|name| known(name))
        };
        let known = images.iter().map(|image| {
            let old = self.known.get(&image.id);
            let used = names(image, &|name| in_use.contains(name));
            let known = Known {
                size: i64::try_from(image.size_bytes).unwrap_or(i64::MAX),
                since: old.map_or(now, |old| old.since),
                used: if used { now } else { old.map_or(now, |old| old.used) },
                kept: used || image.pinned || names(image, &|name| is_named(name, &self.sandbox_image)),
            };
            (image.id.clone(), known)
        });
        self.known = known.collect();
    }

    /// What is to be removed: what was not used for too long, and if the disk is too full, the images that were
    /// not used for the longest until it is not.
    pub(crate) fn stale(&self, disk: Level, now: Instant) -> Vec<ImageId> {
        let config = &self.config;
        let percent = |percent: u8| i128::from(disk.capacity) * i128::from(percent) / 100;
        let used = i128::from(disk.capacity - disk.available);
        let full = disk.capacity > 0 && config.high_percent < 100 && used >= percent(config.high_percent);
        let mut missing = if full { used - percent(config.low_percent) } else { 0 };
        let mut removed = Vec::new();
        for (id, known) in self.unused() {
            let old = !config.age_max.is_zero() && now - known.used > config.age_max;
            let needed = missing > 0 && now - known.since >= config.age_min;
            if old || needed {
                missing -= i128::from(known.size);
                removed.push(id.clone());
            }
        }
        removed
    }

    /// All that nobody uses, for a disk that is so full that pods would have to go.
    pub(crate) fn all_unused(&self) -> Vec<ImageId> {
        self.unused().into_iter().map(|(id, _)| id.clone()).collect()
    }

    /// The one that was not used for the longest first.
    fn unused(&self) -> Vec<(&ImageId, &Known)> {
        let mut unused: Vec<_> = self.known.iter().filter(|(_, known)| !known.kept).collect();
        unused.sort_by_key(|(_, known)| (known.used, known.since));
        unused
    }
}

/// Whether an image of this full name is what somebody calls `short`, which may leave out Docker's registry.
fn is_named(name: &str, short: &str) -> bool {
    let rest = name.strip_suffix(short);
    !short.is_empty() && rest.is_some_and(|rest| ["", "docker.io/", "docker.io/library/"].contains(&rest))
}

/// How often the images are listed while nothing happens to them.
pub(crate) const LIST_INTERVAL: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use kubeedge_core::runtime::ObservedContainer;

    use super::*;

    fn image(id: &str, size: u64) -> Image {
        Image {
            id: ImageId(id.to_owned()),
            tags: vec![format!("{id}:1")],
            size_bytes: size,
            ..Image::default()
        }
    }

    fn using(image: &str) -> [ObservedSandbox; 1] {
        let container = ObservedContainer { image: image.to_owned(), ..ObservedContainer::default() };
        [ObservedSandbox { containers: vec![container], ..ObservedSandbox::default() }]
    }

    fn names(ids: Vec<ImageId>) -> Vec<String> {
        ids.into_iter().map(|id| id.0).collect()
    }

    const FULL: Level = Level { capacity: 1000, available: 150 };

    #[test]
    fn the_images_that_were_not_used_for_the_longest_go_until_the_disk_is_no_longer_full() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut images = Images::new(ImageCollection::default(), "kubeedge/pause:3.6");
        let mut pinned = image("pinned", 500);
        pinned.pinned = true;
        let mut pause = image("pause", 500);
        pause.tags = vec!["docker.io/kubeedge/pause:3.6".to_owned()];
        let all = [image("a", 20), image("b", 20), image("c", 20), image("d", 20), pinned, pause];
        images.handle_images(&all, [].iter(), start);
        images.handle_images(&all, using("b:1").iter(), after(30));
        images.handle_images(&all, using("a:1").iter(), after(60));
        images.handle_images(&all, using("d:1").iter(), after(120));
        assert_eq!(names(images.stale(FULL, after(119))), [""; 0], "all of them are young");
        // 50 have to go: c was never used, b before a.
        assert_eq!(names(images.stale(FULL, after(120))), ["c", "b", "a"]);
        let nearly = Level { available: 151, ..FULL };
        assert_eq!(names(images.stale(nearly, after(120))), [""; 0]);
        assert_eq!(names(images.all_unused()), ["c", "b", "a"]);
    }

    #[test]
    fn an_image_that_nobody_has_used_for_too_long_goes_however_much_room_there_is() {
        let start = Instant::now();
        let config = ImageCollection { age_max: Duration::from_secs(3600), ..ImageCollection::default() };
        let mut images = Images::new(config, "");
        images.handle_images(&[image("a", 1), image("b", 1)], using("b:1").iter(), start);
        let roomy = Level { capacity: 1000, available: 900 };
        assert_eq!(names(images.stale(roomy, start + Duration::from_secs(3600))), [""; 0]);
        assert_eq!(names(images.stale(roomy, start + Duration::from_secs(3601))), ["a"]);
    }

    #[test]
    fn at_a_hundred_percent_nothing_goes_for_want_of_room() {
        let config = ImageCollection { high_percent: 100, low_percent: 99, ..ImageCollection::default() };
        let mut images = Images::new(config, "");
        let start = Instant::now();
        images.handle_images(&[image("a", 1)], [].iter(), start);
        let none = Level { capacity: 1000, available: 0 };
        assert_eq!(names(images.stale(none, start + Duration::from_secs(3600))), [""; 0]);
    }

    #[test]
    fn a_short_name_means_dockers_registry() {
        assert!(is_named("docker.io/kubeedge/pause:3.6", "kubeedge/pause:3.6"));
        assert!(is_named("docker.io/library/pause:1", "pause:1"));
        assert!(!is_named("quay.io/kubeedge/pause:3.6", "kubeedge/pause:3.6"));
        assert!(!is_named("docker.io/x", ""));
    }
}
