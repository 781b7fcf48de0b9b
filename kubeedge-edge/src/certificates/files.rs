//! A certificate and its key that are there together or not at all, also when the power is cut.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use kubeedge_core::tls::Identity;

use super::{Error, Files};

/// Stores a file that only its owner can read, whole or not at all.
pub(super) fn store(file: &Path, text: &str) -> Result<(), Error> {
    let next = next(file);
    in_error(file, draft(&next, text).and_then(|()| fs::rename(&next, file)).and_then(|()| sync_folder(file)))
}

/// Stores a key and its certificate. Both drafts are on the disk before the first takes its place, so that
/// [`finish`] can always tell how far it came.
pub(super) fn store_pair(files: &Files, key: &str, certificate: &str) -> Result<(), Error> {
    in_error(&files.key, draft(&next(&files.key), key))?;
    in_error(&files.certificate, draft(&next(&files.certificate), certificate))?;
    put_in_place(files)
}

fn put_in_place(files: &Files) -> Result<(), Error> {
    for file in [&files.key, &files.certificate] {
        let renamed = match fs::rename(next(file), file) {
            // It is in its place already.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            renamed => renamed,
        };
        in_error(file, renamed.and_then(|()| sync_folder(file)))?;
    }
    Ok(())
}

/// Brings what a power cut has left half done to its end, or removes it.
pub(super) fn finish(files: &Files) {
    let (key, certificate) = (next(&files.key), next(&files.certificate));
    let belong = |certificate: &Path, key: &Path| Identity::from_files(certificate, key).is_ok();
    let key_is_placed = !key.exists() && belong(&certificate, &files.key);
    let both_are_drafts = belong(&certificate, &key);
    if (key_is_placed || both_are_drafts)
        && let Err(error) = put_in_place(files)
    {
        tracing::warn!(%error, "a certificate that was received cannot take its place");
        return;
    }
    for draft in [key, certificate] {
        // Mostly there is none.
        let _ = fs::remove_file(draft);
    }
}

fn next(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".next");
    name.into()
}

fn draft(file: &Path, text: &str) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    // Left by a crash, perhaps with another mode.
    let _ = fs::remove_file(file);
    let mut open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    open.write_all(text.as_bytes())?;
    open.sync_all()?;
    sync_folder(file)
}

fn sync_folder(file: &Path) -> io::Result<()> {
    File::open(file.parent().unwrap_or(Path::new(".")))?.sync_all()
}

fn in_error(file: &Path, result: io::Result<()>) -> Result<(), Error> {
    result.map_err(|source| Error::File { file: file.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn pair() -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::default().self_signed(&key).unwrap();
        (key.serialize_pem(), certificate.pem())
    }

    fn files(folder: &Path) -> Files {
        let at = |name: &str| folder.join("certs").join(name);
        Files { ca: at("ca.crt"), certificate: at("server.crt"), key: at("server.key") }
    }

    fn holds(files: &Files, (key, certificate): &(String, String)) -> bool {
        fs::read_to_string(&files.key).is_ok_and(|found| found == *key)
            && fs::read_to_string(&files.certificate).is_ok_and(|found| found == *certificate)
    }

    #[test]
    fn a_power_cut_at_any_step_leaves_one_pair_or_the_other() {
        for first in [None, Some(pair())] {
            // Steps: key drafted, certificate drafted, key placed, certificate placed.
            for steps in 0..=4 {
                let folder = tempfile::tempdir().unwrap();
                let (files, second) = (files(folder.path()), pair());
                if let Some((key, certificate)) = &first {
                    store_pair(&files, key, certificate).unwrap();
                }
                let step = |at: usize, act: &dyn Fn()| (steps >= at).then(act).unwrap_or_default();
                step(1, &|| draft(&next(&files.key), &second.0).unwrap());
                step(2, &|| draft(&next(&files.certificate), &second.1).unwrap());
                step(3, &|| fs::rename(next(&files.key), &files.key).unwrap());
                step(4, &|| fs::rename(next(&files.certificate), &files.certificate).unwrap());

                finish(&files);
                let wanted = if steps >= 2 { Some(&second) } else { first.as_ref() };
                match wanted {
                    Some(pair) => assert!(holds(&files, pair), "after {steps} steps"),
                    None => assert!(!files.key.exists() && !files.certificate.exists()),
                }
                for file in [&files.key, &files.certificate] {
                    assert!(!next(file).exists(), "nothing is left over after {steps} steps");
                }
            }
        }
    }

    #[test]
    fn only_the_owner_can_read_what_is_stored() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        let (key, certificate) = pair();
        store_pair(&files, &key, &certificate).unwrap();
        store(&files.ca, &certificate).unwrap();
        for file in [&files.key, &files.certificate, &files.ca] {
            assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }
}
