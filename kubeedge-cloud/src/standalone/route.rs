//! Which path means what.

use super::{failure::Failure, query::decode, resource::Resource};

/// What a path in the API leads to.
#[derive(Debug)]
pub(crate) enum Route {
    /// Objects, or one of them.
    Objects {
        resource: &'static Resource,
        /// `None` for cluster-scoped objects and for all namespaces.
        namespace: Option<String>,
        name: Option<String>,
        /// `status`, `log`, …
        sub: Option<String>,
    },
    /// An HTTP server on a node.
    NodeProxy { node: String, port: u16, path: String },
    /// Anything that is not about stored objects: health, discovery, reviews.
    Fixed(String),
}

/// Reads a path.
pub(crate) fn parse(path: &str) -> Result<Route, Failure> {
    let fixed = || Ok(Route::Fixed(path.trim_end_matches('/').to_owned()));
    let segments: Vec<String> =
        path.split('/').filter(|segment| !segment.is_empty()).map(decode).collect::<Result<_, _>>()?;
    // A name with NUL would be mistaken for two in the store's keys, and one with a slash for a path.
    if segments.iter().any(|segment| segment.contains(['\0', '/'])) {
        return Err(Failure::bad_request("a name in the path holds a character that no name may hold"));
    }
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let (group, version, rest) = match segments.as_slice() {
        ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
        _ => return fixed(),
    };
    if let (true, ["nodes", node, "proxy", ..]) = (group.is_empty(), rest) {
        return node_proxy(node, path);
    }
    let find = |plural| Resource::find(group, version, plural);
    let (namespace, plural, rest) = match rest {
        ["namespaces", namespace, plural, rest @ ..] if find(plural).is_some() => {
            (Some((*namespace).to_owned()), *plural, rest)
        }
        [plural, rest @ ..] => (None, *plural, rest),
        [] => return fixed(),
    };
    let Some(resource) = find(plural) else { return fixed() };
    // A cluster-scoped object is not found in a namespace, nor a namespaced one without.
    if namespace.is_some() != resource.namespaced && !(resource.namespaced && rest.is_empty()) {
        return Err(Failure::no_such_path());
    }
    let (name, sub) = match rest {
        [] => (None, None),
        [name] => (Some((*name).to_owned()), None),
        [name, sub] => (Some((*name).to_owned()), Some((*sub).to_owned())),
        _ => return Err(Failure::no_such_path()),
    };
    Ok(Route::Objects { resource, namespace, name, sub })
}

/// `/api/v1/nodes/<node>:<port>/proxy/<path>`; the path stays as it is encoded.
fn node_proxy(node: &str, path: &str) -> Result<Route, Failure> {
    let bad = || Failure::bad_request("the node must be named with a port, as in nodes/<name>:<port>/proxy/");
    // Kubernetes also takes a scheme: http:<name>:<port>.
    let node = node.strip_prefix("http:").unwrap_or(node);
    let (node, port) = node.split_once(':').ok_or_else(bad)?;
    let port = port.trim_end_matches(':').parse().map_err(|_| bad())?;
    let rest = path.split_once("/proxy").map_or("", |(_, rest)| rest);
    let path = if rest.is_empty() { "/" } else { rest };
    Ok(Route::NodeProxy { node: node.to_owned(), port, path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objects(path: &str) -> (&'static str, Option<String>, Option<String>, Option<String>) {
        match parse(path) {
            Ok(Route::Objects { resource, namespace, name, sub }) => (resource.plural, namespace, name, sub),
            other => panic!("{path}: {other:?}"),
        }
    }

    #[test]
    fn a_path_leads_to_objects_of_a_namespace_of_all_or_of_the_cluster() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(objects("/api/v1/pods"), ("pods", None, None, None));
        assert_eq!(objects("/api/v1/namespaces/a/pods/b/log"), ("pods", some("a"), some("b"), some("log")));
        assert_eq!(objects("/api/v1/namespaces/a"), ("namespaces", None, some("a"), None));
        assert_eq!(objects("/api/v1/namespaces/a/status"), ("namespaces", None, some("a"), some("status")));
        assert_eq!(objects("/api/v1/nodes/n%31"), ("nodes", None, some("n1"), None));
        let devices = "/apis/devices.kubeedge.io/v1beta1/namespaces/a/devices";
        assert_eq!(objects(devices), ("devices", some("a"), None, None));
    }

    #[test]
    fn a_path_that_cannot_be_is_refused() {
        for path in [
            "/api/v1/pods/a",
            "/api/v1/namespaces/a/pods/b%00c",
            "/api/v1/nodes/%zz",
            "/api/v1/nodes/n/proxy/",
        ] {
            assert!(parse(path).is_err(), "{path}");
        }
        assert!(matches!(parse("/api/v1/endpoints"), Ok(Route::Fixed(_))));
    }

    #[test]
    fn a_node_is_reached_by_name_and_port() {
        match parse("/api/v1/nodes/n:8080/proxy/x/y%20z") {
            Ok(Route::NodeProxy { node, port: 8080, path }) => {
                assert_eq!((&*node, &*path), ("n", "/x/y%20z"))
            }
            other => panic!("{other:?}"),
        }
    }
}
