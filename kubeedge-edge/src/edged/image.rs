//! Whether a text can be the name of an image, so that a wrong one is told from one that is absent.

/// Checks the name by the grammar of the distribution specification's references.
///
/// # Errors
/// With the kubelet's words.
pub(crate) fn check(image: &str) -> Result<(), String> {
    let why = |why: &str| {
        Err(format!(
            "Failed to apply default image tag {image:?}: couldn't parse image name {image:?}: {why}"
        ))
    };
    if image.is_empty() {
        return why("invalid reference format");
    }
    let (rest, digest) = image.split_once('@').map_or((image, None), |(rest, digest)| (rest, Some(digest)));
    if digest.is_some_and(|digest| !is_digest(digest)) {
        return why("invalid reference format");
    }
    let slash = rest.rfind('/').map_or(0, |at| at + 1);
    let (name, tag) = match rest[slash..].split_once(':') {
        Some((last, tag)) => (&rest[..slash + last.len()], Some(tag)),
        None => (rest, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return why("invalid reference format");
    }
    let path = match name.split_once('/') {
        Some((host, path)) if is_host(host) => path,
        Some(_) | None => name,
    };
    if path.chars().any(|c| c.is_ascii_uppercase())
        && path.split('/').all(|part| is_part(&part.to_ascii_lowercase()))
    {
        return why("invalid reference format: repository name must be lowercase");
    }
    if name.len() > 255 || !path.split('/').all(is_part) {
        return why("invalid reference format");
    }
    Ok(())
}

fn is_host(text: &str) -> bool {
    let looks_like =
        text.contains(['.', ':']) || text == "localhost" || text.chars().any(|c| c.is_ascii_uppercase());
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']');
    looks_like && text.chars().all(fine)
}

fn is_digest(text: &str) -> bool {
    text.split_once(':').is_some_and(|(algorithm, hex)| {
        !algorithm.is_empty() && hex.len() >= 32 && hex.chars().all(|c| c.is_ascii_hexdigit())
    })
}

fn is_tag(text: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.len() <= 128 && text.starts_with(word) && text.chars().all(|c| word(c) || c == '.' || c == '-')
}

/// Lower-case letters and digits, with separators only between them.
fn is_part(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let fine = |c: char| plain(c) || matches!(c, '.' | '_' | '-');
    text.starts_with(plain) && text.ends_with(plain) && text.chars().all(fine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_images_are_told_from_what_cannot_be_one() {
        let digest = format!("app@sha256:{}", "a".repeat(64));
        let good = [
            "app",
            "app:1",
            "localhost/pause:1",
            "registry.example:5000/team/app:v1.2_3",
            &digest,
            "a/b-c__d",
        ];
        for image in good {
            assert_eq!(check(image), Ok(()), "{image}");
        }
        for image in ["", "App:1", "app:", "app:1:2", "app//b", "-app", "app@sha256:12", "app 1", "app:1/b c"]
        {
            assert!(check(image).is_err(), "{image}");
        }
        assert!(check("App:1").unwrap_err().ends_with("repository name must be lowercase"));
    }
}
