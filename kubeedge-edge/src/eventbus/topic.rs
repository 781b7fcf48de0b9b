//! MQTT topic names and topic filters (MQTT 3.1.1 §4.7).

/// Whether `topic` may be published on: not empty, without wildcards and without the zero character.
pub(crate) fn is_name(topic: &str) -> bool {
    !topic.is_empty() && topic.len() <= u16::MAX.into() && !topic.contains(['+', '#', '\0'])
}

/// Whether `filter` may be subscribed to: `+` fills a level, `#` fills the last one.
pub(crate) fn is_filter(filter: &str) -> bool {
    if filter.is_empty() || filter.len() > u16::MAX.into() || filter.contains('\0') {
        return false;
    }
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        let plain = !level.contains(['+', '#']);
        let last = levels.peek().is_none();
        if !(plain || level == "+" || (level == "#" && last)) {
            return false;
        }
    }
    true
}

/// Whether the topic name `topic` is one that the filter `filter` asks for.
///
/// A wildcard at the beginning does not match a topic that begins with `$` (§4.7.2): who subscribes to
/// `#` wants what applications say, not the traffic of the node itself.
pub(crate) fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut wanted = filter.split('/');
    let mut levels = topic.split('/');
    loop {
        match (wanted.next(), levels.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(text), Some(level)) if text == level => {}
            (Some(_) | None, Some(_)) | (Some(_), None) => return false,
        }
    }
}

/// Whether every topic that the filter `wanted` matches is one that the filter `allowed` matches.
pub(crate) fn covers(allowed: &str, wanted: &str) -> bool {
    if wanted.starts_with('$') && allowed.starts_with(['+', '#']) {
        return false;
    }
    let mut may = allowed.split('/');
    let mut levels = wanted.split('/');
    loop {
        match (may.next(), levels.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(level)) if level != "#" => {}
            (Some(text), Some(level)) if text == level => {}
            (Some(_) | None, Some(_)) | (Some(_), None) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_matches_as_the_standard_says() {
        let yes = [
            ("a/b", "a/b"),
            ("a/+", "a/b"),
            ("+/+", "/b"),
            ("/+", "/b"),
            ("#", "a/b/c"),
            ("a/#", "a"),
            ("a/#", "a/b/c"),
            ("+/user/#", "n1/user/x"),
            ("$hw/+", "$hw/a"),
            ("$hw/#", "$hw"),
        ];
        let no = [
            ("a/b", "a/c"),
            ("a/+", "a"),
            ("a/+", "a/b/c"),
            ("+", "/b"),
            ("#", "$hw/a"),
            ("+/a", "$hw/a"),
            ("a/b/#", "a"),
            ("a", "a/"),
        ];
        for (filter, topic) in yes {
            assert!(matches(filter, topic), "{filter} {topic}");
        }
        for (filter, topic) in no {
            assert!(!matches(filter, topic), "{filter} {topic}");
        }
    }

    #[test]
    fn a_filter_covers_another_when_it_matches_all_that_the_other_matches() {
        for (allowed, wanted) in [
            ("#", "a/+/#"),
            ("a/#", "a"),
            ("a/#", "a/#"),
            ("a/+", "a/+"),
            ("+/b", "a/b"),
            ("$hw/#", "$hw/+/x"),
        ] {
            assert!(covers(allowed, wanted), "{allowed} {wanted}");
        }
        for (allowed, wanted) in [
            ("a/+", "a/#"),
            ("+", "#"),
            ("#", "$hw/#"),
            ("a/b", "a/+"),
            ("a/#", "#"),
            ("a/#", "+/b"),
            ("a", "a/b"),
        ] {
            assert!(!covers(allowed, wanted), "{allowed} {wanted}");
        }
    }

    #[test]
    fn wildcards_stand_alone_on_their_level_and_a_hash_stands_last() {
        for good in ["#", "+", "a/+/b", "a/#", "/", "+/user/#", "$hw/events/device/+/+/twin/+"] {
            assert!(is_filter(good), "{good}");
        }
        for bad in ["", "a#", "#/a", "a/b+", "a/#/b", "a\0"] {
            assert!(!is_filter(bad), "{bad}");
        }
        assert!(is_name("$hw/a") && is_name("/"));
        assert!(!is_name("") && !is_name("a/+") && !is_name("#") && !is_name("a\0"));
    }
}
