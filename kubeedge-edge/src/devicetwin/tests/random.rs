use proptest::prelude::*;

use super::*;

/// Payloads that are nearly right, so that they come far.
fn payload() -> impl Strategy<Value = Vec<u8>> {
    let value = prop_oneof![
        Just(Value::Null),
        Just(json!({})),
        Just(json!([])),
        any::<i64>().prop_map(|number| json!({ "value": number })),
        "\\PC{0,6}".prop_map(|text| json!({ "value": text })),
        "[0-9]{1,3}".prop_map(|text| json!({"value": text, "metadata": {"timestamp": 1}})),
        Just(json!({"value": null, "metadata": null})),
    ];
    let type_name =
        prop_oneof![Just("int"), Just("string"), Just("boolean"), Just("deleted"), Just("Updated")];
    let change = (value.clone(), value, proptest::option::of(type_name), any::<Option<bool>>()).prop_map(
        |(expected, actual, value_type, optional)| {
            json!({"expected": expected, "actual": actual, "optional": optional, "metadata": {"type": value_type}})
        },
    );
    let change = prop_oneof![change, Just(Value::Null), Just(json!({})), Just(json!(1))];
    let update = (proptest::collection::btree_map("[a-c]|\\PC{0,3}", change, 0..4), any::<Option<u8>>())
        .prop_map(|(twin, event)| {
            json!({"event_id": event.map(|e| e.to_string()), "twin": twin}).to_string()
        });
    prop_oneof![
        4 => update.clone().prop_map(String::into_bytes),
        1 => proptest::collection::vec(any::<u8>(), 0..40),
        // Cut or damaged anywhere.
        1 => (update, any::<prop::sample::Index>(), any::<u8>()).prop_map(|(text, at, byte)| {
            let mut bytes = text.into_bytes();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            bytes
        }),
    ]
}

proptest! {
    #[test]
    fn no_payload_panics_and_only_what_is_accepted_changes_a_twin(
        messages in proptest::collection::vec(
            (prop_oneof![Just("twin/update"), Just("twin/get"), Just("state/update"), Just("twin/cloud_updated")], payload()),
            1..12,
        )
    ) {
        let mut twin = Twin::thermometer();
        let mut before = twin.send("twin/get", json!({}));
        for (event, payload) in messages {
            let told = twin.publish(&Publish { topic: topic(event), payload: payload.into() });
            let answers = shown(told);
            let accepted = event == "twin/update"
                && answers.iter().any(|(topic, answer)| topic == "twin/update/result" && answer.get("code").is_none());
            if event == "twin/update" {
                prop_assert!(!answers.is_empty(), "every update is answered");
            }
            let after = twin.send("twin/get", json!({}));
            prop_assert!(accepted || before == after);
            // What was told is what a restart finds.
            prop_assert_eq!(&twin.after_power_cut().send("twin/get", json!({})), &after);
            before = after;
        }
    }

    #[test]
    fn no_topic_and_no_payload_panics(topic in "\\$hw/events/(device|node)/\\PC{0,30}", payload in any::<Vec<u8>>()) {
        Twin::thermometer().publish(&Publish { topic, payload: payload.into() });
    }
}
