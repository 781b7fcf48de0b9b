use kubeedge_core::store::Key;
use proptest::prelude::*;

use super::{super::record, *};

proptest! {
    #[test]
    fn what_is_written_reads_back(
        names in prop::array::uniform4("[a-zA-Z0-9./%_-]{1,40}"),
        namespaced: bool,
        uid in ".{0,40}",
        version: u64,
        fingerprint: u64,
        content in ".{0,200}",
    ) {
        let [api_version, kind, namespace, name] = names;
        prop_assume!(namespace != "_");
        let namespace = if namespaced { namespace } else { String::new() };
        let mut object = object(ObjectRef::new(api_version, kind, namespace, name), &uid, version, &content);
        object.fingerprint = Fingerprint(fingerprint);
        let key = record::key(&object.reference).unwrap();
        prop_assert!(record::fits(&object.uid));
        prop_assert_eq!(record::decode(&key, record::encode(&object)).unwrap(), object);
    }

    #[test]
    fn no_bytes_make_reading_panic(key in "[a-z/%]{1,30}", value: Vec<u8>) {
        let _ = record::decode(&Key::from_text(key).unwrap(), value.into());
    }
}

#[test]
fn a_value_that_was_cut_anywhere_is_damaged() {
    let object = pod("a", "uid", 3, "content");
    let key = record::key(&object.reference).unwrap();
    let value = record::encode(&object);
    for length in 0..value.len() {
        assert!(record::decode(&key, value.slice(..length)).is_err(), "{length}");
    }
}

#[test]
fn an_object_that_ends_with_a_line_break_reads_back_as_it_is() {
    let mut object = pod("a", "uid", 3, "content");
    object.json = [&object.json[..], b"\n"].concat().into();
    let key = record::key(&object.reference).unwrap();
    assert_eq!(record::decode(&key, record::encode(&object)).unwrap(), object);
}

#[test]
fn the_format_of_version_1_does_not_change() {
    let object = pod("a", "u", 3, "x");
    let key = record::key(&object.reference).unwrap();
    assert_eq!(key.as_str(), "objects/v1/Pod/default/a");
    let value = record::encode(&object);
    let header = [&[1][..], &3u64.to_be_bytes(), &object.fingerprint.0.to_be_bytes(), &[1], b"u"].concat();
    assert_eq!(value, [&header, &object.json[..]].concat());
    let node = record::key(&ObjectRef::node("edge-1")).unwrap();
    assert_eq!(node.as_str(), "objects/v1/Node/_/edge-1");
    let device = record::key(&ObjectRef::device_model("default", "m")).unwrap();
    assert_eq!(device.as_str(), "objects/devices.kubeedge.io%2Fv1beta1/DeviceModel/default/m");
}
