use super::*;

#[test]
fn a_first_update_is_answered_with_result_document_and_delta_in_kubeedges_form() {
    let mut twin = Twin::thermometer();
    let update = json!({"event_id": "e1", "timestamp": 1, "twin": {"temperature": {
        "expected": {"value": "20"}, "actual": {"value": "0", "metadata": {"timestamp": 1}}}}});
    let answers = twin.send("twin/update", update);
    let shown = json!({
        "expected": {"value": "20", "metadata": {"timestamp": MIDNIGHT_MS}},
        "actual": {"value": "0", "metadata": {"timestamp": MIDNIGHT_MS}},
        "optional": true, "metadata": {"type": "string"}});
    let base = |payload: Value| {
        let mut all = json!({"event_id": "e1", "timestamp": MIDNIGHT_MS});
        all.as_object_mut().unwrap().extend(payload.as_object().unwrap().clone());
        all
    };
    assert_eq!(answers[0], ("twin/update/result".into(), base(json!({"twin": {"temperature": shown}}))));
    let document = base(json!({"twin": {"temperature": {"last": null, "current": shown}}}));
    assert_eq!(answers[1], ("twin/update/document".into(), document));
    assert_eq!(answers[2].0, "twin/update/delta");
    assert_eq!(answers[2].1["twin"], json!({"temperature": shown}));
    assert_eq!(answers[2].1["delta"], json!({"temperature": "20"}));
    assert_eq!(answers[2].1["event_id"].as_str().unwrap().len(), 36);
    assert_eq!(answers.len(), 3);
}

#[test]
fn an_update_shows_only_the_parts_that_it_changed_and_ignores_another_type() {
    let mut twin = Twin::thermometer();
    twin.send("twin/update", json!({"twin": {"temperature": {"expected": {"value": "20"}}}}));
    twin.passed = Duration::from_secs(1);
    let update = json!({"event_id": "e3", "twin": {"temperature": {
        "actual": {"value": "31"}, "metadata": {"type": "Updated"}}}});
    let answers = twin.send("twin/update", update);
    let now = MIDNIGHT_MS + 1_000;
    assert_eq!(
        answers[0].1["twin"],
        json!({"temperature": {"actual": {"value": "31", "metadata": {"timestamp": now}},
            "optional": true, "metadata": {"type": "string"}}})
    );
    let document = &answers[1].1["twin"]["temperature"];
    assert_eq!(document["last"]["expected"]["value"], "20");
    assert_eq!(document["last"].get("actual"), None);
    assert_eq!(document["current"]["expected"]["metadata"]["timestamp"], MIDNIGHT_MS);
    assert_eq!(document["current"]["actual"]["value"], "31");
}

#[test]
fn all_twins_can_be_asked_for() {
    let mut twin = Twin::thermometer();
    twin.send(
        "twin/update",
        json!({"twin": {"a": {"actual": {"value": "1"}}, "b": {"actual": {"value": "2"}}}}),
    );
    twin.send("twin/update", json!({"twin": {"b": null}}));
    let answers = twin.send("twin/get", json!({"event_id": "e2", "timestamp": 1}));
    assert_eq!(
        answers,
        [(
            "twin/get/result".to_owned(),
            json!({"event_id": "e2", "timestamp": MIDNIGHT_MS, "twin": {"a": {
                "actual": {"value": "1", "metadata": {"timestamp": MIDNIGHT_MS}},
                "optional": true, "metadata": {"type": "string"}}}})
        )]
    );
}

#[test]
fn what_cannot_be_read_is_answered_on_the_topic_of_no_device() {
    let mut twin = Twin::thermometer();
    let long = "x".repeat(513);
    let nowhere = "$hw/events/device//twin/update/result";
    let unreadable = "Unmarshal update request body failed, please check the request";
    let mut refused = |payload: &[u8]| {
        let told = twin.publish(&Publish { topic: topic("twin/update"), payload: payload.to_vec().into() });
        let [(topic, answer)] = shown(told).try_into().unwrap();
        assert_eq!(
            (topic.as_str(), &answer["event_id"], &answer["code"]),
            (nowhere, &json!(""), &json!(400))
        );
        answer["reason"].as_str().unwrap().to_owned()
    };
    for bad in
        ["", "\u{1}", "[]", "null", "7", "{", "[\"e\",1]", r#"{"event_id":1,"twin":{}}"#, r#"{"twin":[]}"#]
    {
        let reason = refused(bad.as_bytes());
        assert!(reason.starts_with(unreadable) && reason.contains("default/t-1"), "{bad}: {reason}");
    }
    for bad in [json!([]), json!({"actual": []}), json!({"actual": "1"}), json!({"actual": {"value": 1}})] {
        let reason = refused(json!({"twin": {"k": bad}}).to_string().as_bytes());
        assert!(reason.starts_with(unreadable) && reason.contains("property \"k\""), "{bad}: {reason}");
    }
    for bad in [json!({}), json!({"twin": null})] {
        let reason = refused(bad.to_string().as_bytes());
        assert!(reason.starts_with("Update twin error, key:twin does not exist"), "{reason}");
    }
    for bad in ["", "a b", "ä", "a+b", &"x".repeat(129)] {
        refused(json!({"twin": {bad: {"actual": {"value": "1"}}}}).to_string().as_bytes());
    }
    for bad in ["a b", "a+b", "ä", "{", &long] {
        refused(json!({"twin": {"k": {"actual": {"value": bad}}}}).to_string().as_bytes());
    }
    refused(&[0xff; 300 << 10]);
    assert_eq!(twin.writes, 1, "only the device itself was ever written");
}

#[test]
fn a_value_that_is_absent_is_refused_where_kubeedge_crashes() {
    let mut twin = Twin::thermometer();
    for slot in ["actual", "expected"] {
        for bad in [json!({}), json!({"value": null}), json!({"metadata": {"timestamp": 1}})] {
            let update = json!({"event_id": "e", "twin": {"np": {slot: bad, "metadata": {"type": "string"}}, "ok": {"actual": {"value": "1"}}}});
            let answers = twin.send("twin/update", update);
            assert_eq!((answers.len(), answers[0].0.as_str()), (1, "twin/update/result"));
            assert_eq!((&answers[0].1["code"], &answers[0].1["event_id"]), (&json!(400), &json!("e")));
        }
    }
    let answers = twin.send("twin/get", json!({}));
    assert_eq!(answers[0].1["twin"], json!({}), "nothing of a refused message is taken");
}

#[test]
fn a_device_that_is_not_there_is_answered_with_404() {
    let mut twin = Twin::new();
    let answers =
        twin.send("twin/update", json!({"event_id": "e", "twin": {"a": {"actual": {"value": "1"}}}}));
    assert_eq!(answers[0].0, "twin/update/result");
    assert_eq!(
        answers[0].1,
        json!({"event_id": "e", "timestamp": MIDNIGHT_MS, "code": 404,
            "reason": "update rejected due to the device is not existed"})
    );
    let answers = twin.send("twin/get", json!({"event_id": "g"}));
    assert_eq!(answers[0].0, "twin/get/result");
    assert_eq!(answers[0].1["code"], 404);
    assert_eq!(answers[0].1["reason"], "Device default/t-1 not found while getting twin");
    assert!(twin.send("state/update", json!({"state": "online"})).is_empty());
}

#[test]
fn garbage_is_answered_on_every_topic_that_answers_and_changes_nothing() {
    let mut twin = Twin::thermometer();
    let mut send = |topic: &str| {
        let payload = b"\x00garbage".to_vec().into();
        shown(twin.publish(&Publish { topic: topic.to_owned(), payload }))
    };
    assert_eq!(send(&topic("twin/get"))[0].1["code"], 400);
    assert_eq!(send("$hw/events/node/edge-1/membership/get")[0].1["code"], 400);
    for silent in
        ["state/update", "state/get", "twin/cloud_updated", "twin/update/result", "updated", "twin/nonsense"]
    {
        assert!(send(&topic(silent)).is_empty(), "{silent}");
    }
    assert!(send("$hw/events/node/edge-2/membership/get").is_empty());
    assert!(send("anything").is_empty());
    assert_eq!(twin.writes, 1);
}

#[test]
fn values_are_checked_by_the_type_of_their_twin() {
    let mut twin = Twin::thermometer();
    let update = |twin: &mut Twin, value: &str, value_type: &str| {
        let twin_change = json!({"actual": {"value": value}, "metadata": {"type": value_type}});
        let answers = twin.send(
            "twin/update",
            json!({"event_id": "e", "twin": {"n": twin_change, "a": {"actual": {"value": "1"}}}}),
        );
        answers[0].1.get("code").cloned()
    };
    assert_eq!(update(&mut twin, "warm", "int"), Some(json!(400)));
    assert_eq!(update(&mut twin, "1", "double"), Some(json!(400)));
    assert_eq!(twin.send("twin/get", json!({}))[0].1["twin"], json!({}));
    assert_eq!(update(&mut twin, "1", "int"), None);
    assert_eq!(update(&mut twin, "warm", "string"), Some(json!(400)), "the type stays");
    assert_eq!(update(&mut twin, "2", "double"), None);
}

#[test]
fn a_twin_is_deleted_if_it_is_optional_and_its_versions_go_on() {
    let mut twin = Twin::thermometer();
    twin.send("twin/update", json!({"twin": {"a": {"actual": {"value": "1"}, "metadata": {"type": "int"}}, "b": {"actual": {"value": "1"}, "optional": false}}}));
    let answers =
        twin.send("twin/update", json!({"event_id": "d", "twin": {"a": null, "b": null, "c": null}}));
    assert_eq!(answers[0].1["twin"], json!({"a": null}));
    let documents = answers[1].1["twin"].as_object().unwrap();
    assert_eq!(documents["a"]["current"], Value::Null);
    assert_eq!(documents["a"]["last"]["actual"]["value"], "1");
    assert_eq!(documents["c"], json!({"last": null, "current": null}));
    assert!(!documents.contains_key("b"));
    // Created again, it has the type that was asked for, and a newer version than ever before.
    let told = twin.publish(&message("twin/update", &json!({"twin": {"a": {"actual": {"value": "x"}}}})));
    assert_eq!(reported(&told.reports[0], "a"), Some(("x".to_owned(), 3)));
}

#[test]
fn a_device_may_not_have_twins_without_end() {
    let mut config = Config::new("edge-1".parse().unwrap());
    config.limits.twins_per_device = 2;
    let mut twin = Twin::with(config);
    twin.hear(&thermometer("u", 1, None));
    let send = |twin: &mut Twin, key: &str| {
        twin.send("twin/update", json!({"twin": {key: {"actual": {"value": "1"}}}}))[0].1.get("code").cloned()
    };
    assert_eq!(send(&mut twin, "a"), None);
    assert_eq!(send(&mut twin, "b"), None);
    assert_eq!(send(&mut twin, "c"), Some(json!(400)));
    assert_eq!(send(&mut twin, "a"), None);
    assert!(twin.read(reading("d", "1", None)).publishes.is_empty());
}

#[test]
fn a_state_is_taken_in_any_case_if_kubeedge_knows_it() {
    let mut twin = Twin::thermometer();
    let answers = twin.send("state/update", json!({"event_id": "e4", "timestamp": 1, "state": "Online"}));
    assert_eq!(answers[0].0, "state/update/result");
    let device = json!({"name": "t-1", "state": "Online", "lastOnlineTime": "2026-11-23T00:50:48Z"});
    assert_eq!(answers[0].1["device"], device);
    assert!(twin.send("state/update", json!({"state": "disconnected"})).is_empty());
    let told = twin.publish(&message("state/update", &json!({"state": "offline"})));
    assert_eq!(told.reports[0].state.as_deref(), Some("offline"));
    assert_eq!(shown(told)[0].1["device"], json!({"name": "t-1", "state": "offline"}));
}

#[test]
fn the_nodes_devices_can_be_asked_for_and_coming_and_going_is_told() {
    let mut twin = Twin::new();
    let answers = shown(twin.hear(&thermometer("u", 1, None)));
    assert_eq!(answers[0].0, "$hw/events/node/edge-1/membership/updated");
    assert_eq!(answers[0].1["added_devices"], json!([{"id": "default/t-1", "name": "t-1"}]));
    assert_eq!(answers[0].1["removed_devices"], Value::Null);
    twin.read(connection("online"));
    let get = Publish {
        topic: "$hw/events/node/edge-1/membership/get".to_owned(),
        payload: r#"{"event_id":"e1","timestamp":1}"#.into(),
    };
    let answers = shown(twin.publish(&get));
    assert_eq!(answers[0].0, "$hw/events/node/edge-1/membership/get/result");
    let member =
        json!({"id": "default/t-1", "name": "t-1", "state": "online", "last_online": "2026-11-23T00:50:48Z"});
    assert_eq!(answers[0].1, json!({"event_id": "e1", "timestamp": MIDNIGHT_MS, "devices": [member]}));
    let answers = shown(twin.hear(&deleted("u")));
    assert_eq!(answers[0].1["removed_devices"], json!([{"id": "default/t-1", "name": "t-1"}]));
    assert!(twin.stored.is_empty(), "nothing is left of a device that is gone");
}

#[test]
fn what_the_cloud_desires_is_told_to_applications_and_the_mapper_once() {
    let mut twin = Twin::new();
    assert!(twin.hear(&thermometer("u", 1, Some("20"))).assignments.is_empty(), "the model is not here yet");
    let told = twin.hear(&model(1));
    let spec = told.assignments[0].spec.as_ref().unwrap();
    assert_eq!(spec.property("target").unwrap().desired.as_deref(), Some("20"));
    let told = twin.hear(&thermometer("u", 2, Some("25")));
    let spec = told.assignments[0].spec.as_ref().unwrap();
    assert_eq!(spec.property("target").unwrap().desired.as_deref(), Some("25"));
    let events: Vec<_> = shown(told);
    assert_eq!(events[0].0, "twin/update/document");
    assert_eq!(events[0].1["twin"]["target"]["last"]["expected"]["value"], "20");
    assert_eq!(events[1].0, "twin/update/delta");
    assert_eq!(events[1].1["delta"], json!({"target": "25"}));
    let writes = twin.writes;
    for _ in 0..2 {
        assert!(twin.hear(&thermometer("u", 2, Some("25"))).publishes.is_empty());
        assert!(twin.hear(&thermometer("u", 1, Some("20"))).publishes.is_empty(), "an older version");
    }
    assert_eq!(twin.writes, writes, "a replay writes nothing");
}

#[test]
fn an_application_may_desire_too_until_the_cloud_desires_something_else() {
    let mut twin = Twin::new();
    twin.hear(&model(1));
    twin.hear(&thermometer("u", 1, Some("20")));
    let desired =
        |told: &Told| told.assignments[0].spec.as_ref().unwrap().property("target").unwrap().desired.clone();
    let told =
        twin.publish(&message("twin/update", &json!({"twin": {"target": {"expected": {"value": "22"}}}})));
    assert_eq!(desired(&told).as_deref(), Some("22"));
    // The same wish of the cloud again, as after a restart or another change of the object, is not a wish anew.
    let mut twin = twin.after_power_cut();
    twin.hear(&model(1));
    let told = twin.hear(&thermometer("u", 2, Some("20")));
    assert_eq!(desired(&told).as_deref(), Some("22"));
    assert_eq!(desired(&twin.hear(&thermometer("u", 3, Some("21")))).as_deref(), Some("21"));
    assert_eq!(desired(&twin.hear(&thermometer("u", 4, None))), None);
    twin.publish(&message("twin/update", &json!({"twin": {"target": {"expected": {"value": "22"}}}})));
    assert_eq!(desired(&twin.hear(&thermometer("u", 5, None))).as_deref(), Some("22"));
}

#[test]
fn a_device_created_again_begins_anew() {
    let mut twin = Twin::thermometer();
    twin.send(
        "twin/update",
        json!({"twin": {"target": {"expected": {"value": "22"}}, "a": {"actual": {"value": "1"}}}}),
    );
    let told = twin.hear(&thermometer("u2", 9, None));
    assert!(told.reports.is_empty());
    assert_eq!(told.assignments[0].spec.as_ref().unwrap().property("target").unwrap().desired, None);
    assert_eq!(twin.send("twin/get", json!({}))[0].1["twin"], json!({}));
    assert_eq!(twin.stored.keys().collect::<Vec<_>>(), ["devices/default/t-1"]);
}

#[test]
fn the_end_of_a_device_that_was_never_heard_of_ends_the_one_of_its_name() {
    let mut twin = Twin::thermometer();
    twin.read(reading("temperature", "20", None));
    let told = twin.hear(&deleted("another"));
    assert!(told.assignments[0].spec.is_none(), "no mapper runs it any more");
    assert_eq!(told.publishes.len(), 1, "its membership has ended: {told:?}");
    assert!(twin.stored.is_empty(), "{:?}", twin.stored);
    assert!(twin.hear(&deleted("another")).publishes.is_empty(), "it was gone already");
}

#[test]
fn a_device_without_a_fitting_model_is_not_run() {
    let mut twin = Twin::thermometer();
    let ObjectEvent::Applied(object) = model(2) else { unreachable!() };
    let bad = String::from_utf8(object.json.to_vec()).unwrap().replace("\"temperature\"", "\"pressure\"");
    let told = twin.hear(&ObjectEvent::Applied(Object::from_json(bad).unwrap()));
    assert_eq!(told.assignments[0].spec, None);
    assert!(twin.hear(&model(3)).assignments[0].spec.is_some());
    let reference = ObjectRef::device_model("default", "thermometer");
    let told = twin.hear(&ObjectEvent::Deleted { reference, uid: Uid::new("m-2") });
    assert_eq!(told.assignments[0].spec, None);
}

#[test]
fn a_value_that_a_mapper_read_is_told_at_once_and_written_later() {
    let mut twin = Twin::thermometer();
    twin.read(reading("temperature", "20.0", None));
    let writes = twin.writes;
    let told = twin.read(reading("temperature", "20.5", None));
    assert_eq!(reported(&told.reports[0], "temperature"), Some(("20.5".to_owned(), 2)));
    let events: Vec<_> = shown(told).into_iter().map(|(event, _)| event).collect();
    assert_eq!(events, ["twin/update/result", "twin/update/document"]);
    for _ in 0..100 {
        let told = twin.read(reading("temperature", "20.5", None));
        assert!(told.reports.is_empty() && told.publishes.is_empty(), "the same again is nothing to tell");
    }
    assert_eq!(twin.writes, writes);
    let at = twin.state.poll_timeout().unwrap();
    assert_eq!(at - twin.start, Duration::from_secs(300));
    twin.passed = Duration::from_secs(300);
    twin.state.handle_timeout(twin.now());
    twin.end_turn();
    assert_eq!((twin.writes, twin.state.poll_timeout()), (writes + 1, None));
}

#[test]
fn versions_never_repeat_whenever_the_power_goes() {
    let mut twin = Twin::thermometer();
    let (mut newest, mut writes) = (0, 0);
    for round in 0..20 {
        for number in 0..(round * 137 % 400) {
            let told = twin.read(reading("temperature", &format!("{round}.{number}"), None));
            let (_, version) = reported(&told.reports[0], "temperature").unwrap();
            assert!(version > newest, "{version} after {newest}");
            newest = version;
        }
        writes += twin.writes;
        twin = twin.after_power_cut();
        let replayed = twin.hear(&thermometer("u", 1, None));
        if let Some((_, version)) =
            replayed.reports.first().and_then(|report| reported(report, "temperature"))
        {
            assert!(version <= newest, "an old value is not taken for a newer one");
        }
    }
    assert!(writes < 60, "{writes} writes");
}

#[test]
fn the_cloud_hears_what_is_meant_for_it() {
    let mut twin = Twin::thermometer();
    assert!(twin.read(reading("private", "secret", None)).reports.is_empty());
    let told = twin.read(reading("target", "20", Some("20")));
    let report = &told.reports[0];
    assert_eq!(report.uid, Uid::new("u"));
    assert_eq!(report.twins.len(), 1);
    assert_eq!(report.twins[0].observed_desired.as_ref().unwrap().value, "20");
    // What an application writes goes to the cloud, as with KubeEdge.
    let told =
        twin.publish(&message("twin/update", &json!({"twin": {"private": {"actual": {"value": "p"}}}})));
    assert_eq!(told.reports[0].twins.len(), 2);
    twin.state.handle_online(twin.now().at);
    assert_eq!(twin.end_turn().reports.len(), 1);
    // Before the cloud's object is heard again after a restart, it is not known what may be told.
    let mut twin = twin.after_power_cut();
    twin.state.handle_online(twin.now().at);
    assert!(twin.end_turn().reports.is_empty());
    assert_eq!(twin.hear(&thermometer("u", 1, None)).reports.len(), 1);
}

#[test]
fn twins_are_there_after_a_restart_before_the_cloud_says_anything() {
    let mut twin = Twin::thermometer();
    let update = json!({"twin": {"a/b": {"actual": {"value": "1"}, "optional": false}, "target": {"expected": {"value": "3"}}}});
    twin.send("twin/update", update);
    twin.read(connection("online"));
    let before = twin.send("twin/get", json!({}));
    let mut after = twin.after_power_cut();
    assert_eq!(after.send("twin/get", json!({})), before);
}

#[test]
fn a_turn_that_is_rolled_back_never_was() {
    let mut twin = Twin::thermometer();
    twin.send("twin/update", json!({"twin": {"a": {"actual": {"value": "1"}}}}));
    let before = twin.send("twin/get", json!({}));
    let now = twin.now();
    twin.state.handle_message(
        &message("twin/update", &json!({"twin": {"a": null, "b": {"actual": {"value": "2"}}}})),
        now,
    );
    twin.state.handle_object(&thermometer("u", 2, Some("9")), now);
    twin.state.handle_object(&deleted("u"), now);
    twin.state.rollback(now);
    assert!(twin.state.batch().unwrap().is_empty());
    assert_eq!(twin.send("twin/get", json!({})), before);
    let told = twin.hear(&thermometer("u", 2, Some("9")));
    assert_eq!(
        told.assignments[0].spec.as_ref().unwrap().property("target").unwrap().desired.as_deref(),
        Some("9")
    );
}

#[test]
fn deleted_twins_make_room_and_their_versions_are_not_used_again() {
    let mut config = Config::new("edge-1".parse().unwrap());
    config.limits.twins_per_device = 2;
    let mut twin = Twin::with(config);
    twin.hear(&thermometer("u", 1, None));
    for _ in 0..5 {
        twin.send("twin/update", json!({"twin": {"a": {"actual": {"value": "1"}}}}));
        twin.send("twin/update", json!({"twin": {"a": null}}));
    }
    twin.send("twin/update", json!({"twin": {"b": {"actual": {"value": "1"}}}}));
    let told = twin.publish(&message("twin/update", &json!({"twin": {"c": {"actual": {"value": "1"}}}})));
    assert_eq!(reported(&told.reports[0], "c"), Some(("1".to_owned(), 11)), "behind the ten versions of a");
    assert!(!twin.stored.contains_key("twins/default/t-1/a"));
    let refused = twin.send("twin/update", json!({"twin": {"d": {"actual": {"value": "1"}}}}));
    assert_eq!(refused[0].1["code"], 400);
    assert_eq!(twin.read(reading("temperature", "1", None)).publishes.len(), 2, "what is specified has room");
}

#[test]
fn a_device_that_the_cloud_no_longer_mentions_is_forgotten_in_time() {
    let mut twin = Twin::thermometer();
    twin.send("twin/update", json!({"twin": {"a": {"actual": {"value": "1"}}}}));
    let mut after = twin.after_power_cut();
    let wait = Duration::from_secs(600);
    // A link that breaks in between says nothing of what the cloud has.
    after.state.handle_synchronized(true, after.start);
    after.passed = wait / 2;
    after.state.handle_synchronized(false, after.now().at);
    after.passed = wait;
    after.state.handle_timeout(after.now());
    assert!(after.end_turn().publishes.is_empty());
    after.state.handle_synchronized(true, after.now().at);
    assert_eq!(after.state.poll_timeout(), Some(after.now().at + wait));
    after.passed = wait * 2;
    after.state.handle_timeout(after.now());
    let answers = shown(after.end_turn());
    assert_eq!(answers[0].1["removed_devices"][0]["id"], "default/t-1");
    assert!(after.stored.is_empty());
    // One that was mentioned stays.
    twin = twin.after_power_cut();
    twin.hear(&thermometer("u", 1, None));
    twin.state.handle_synchronized(true, twin.start);
    assert_eq!(twin.state.poll_timeout(), None);
}

/// A thermometer at the pace of the defaults.
fn thermometer_at_a_pace() -> Twin {
    let mut twin = Twin::at_a_pace(Config::new("edge-1".parse().unwrap()));
    twin.hear(&model(1));
    twin.hear(&thermometer("u", 1, Some("25")));
    twin
}

/// Lets time pass until `seconds`, and gives what is reported by then.
fn until(twin: &mut Twin, seconds: u64) -> Vec<DeviceReport> {
    let mut reports = Vec::new();
    while let Some(at) =
        twin.state.poll_timeout().filter(|at| *at <= twin.start + Duration::from_secs(seconds))
    {
        twin.passed = at - twin.start;
        twin.state.handle_timeout(twin.now());
        reports.extend(twin.end_turn().reports);
    }
    twin.passed = Duration::from_secs(seconds);
    reports
}

#[test]
fn a_quiet_device_is_reported_at_once_and_a_busy_one_at_a_pace_with_its_newest() {
    let mut twin = thermometer_at_a_pace();
    let mut reports = Vec::new();
    for tenth in 0..400 {
        twin.passed = Duration::from_millis(100 * tenth);
        reports.extend(twin.read(reading("temperature", &tenth.to_string(), None)).reports);
    }
    let values: Vec<_> = reports.iter().map(|report| reported(report, "temperature").unwrap()).collect();
    let wanted = [("0", 1), ("1", 2), ("2", 3), ("100", 101), ("200", 201), ("300", 301)];
    assert_eq!(values, wanted.map(|(value, version)| (value.to_owned(), version)));
    let last = until(&mut twin, 60);
    assert_eq!(last.len(), 1);
    assert_eq!(reported(&last[0], "temperature"), Some(("399".to_owned(), 400)));
}

#[test]
fn what_people_wait_for_is_reported_at_once_even_of_a_busy_device() {
    let mut twin = thermometer_at_a_pace();
    for value in 0..10 {
        twin.read(reading("temperature", &value.to_string(), None));
    }
    assert!(twin.read(reading("target", "24", None)).reports.is_empty(), "its credit is used up");
    let told = twin.read(reading("target", "25", Some("25")));
    assert_eq!(reported(&told.reports[0], "target").unwrap().0, "25");
    let told = twin.read(connection("offline"));
    assert_eq!(told.reports[0].state.as_deref(), Some("offline"));
    let told =
        twin.publish(&message("twin/update", &json!({"twin": {"target": {"actual": {"value": "26"}}}})));
    assert_eq!(told.reports.len(), 1, "it is no longer as desired");
    assert!(twin.read(connection("online")).reports.is_empty(), "a device that flaps has its limit");
    let reports = until(&mut twin, 1);
    assert_eq!(reports[0].state.as_deref(), Some("online"));
}

#[test]
fn any_number_of_changes_without_a_link_become_one_report() {
    let mut twin = thermometer_at_a_pace();
    for value in 0..1_000 {
        twin.read(reading("temperature", &value.to_string(), None));
        twin.send("twin/update", json!({"twin": {"target": {"expected": {"value": "7"}}}}));
    }
    twin.passed = Duration::from_secs(3_600);
    twin.state.handle_online(twin.now().at);
    let reports = until(&mut twin, 3_700);
    assert_eq!(reports.len(), 1);
    assert_eq!(reported(&reports[0], "temperature").unwrap().0, "999");
    let target = &reports[0].twins.iter().find(|twin| twin.property == "target").unwrap();
    assert_eq!(target.observed_desired.as_ref().unwrap().metadata["source"], "application");
}

#[test]
fn versions_go_on_behind_those_of_another_node_or_of_a_lost_store() {
    let of = |uid: &str, version: u64, status: Value| {
        let ObjectEvent::Applied(object) = thermometer(uid, version, None) else { unreachable!() };
        let mut json: Value = serde_json::from_slice(&object.json).unwrap();
        json["status"] = status;
        ObjectEvent::Applied(Object::from_json(json.to_string()).unwrap())
    };
    let status = json!({"twins": [
        {"propertyName": "temperature", "reported": {"value": "20", "metadata": {"version": "500"}}},
        {"propertyName": "target", "observedDesired": {"value": "20", "metadata": {"version": "700"}}},
        {"propertyName": 7, "reported": {"metadata": {"version": "x"}}},
        {"propertyName": "private", "reported": {"metadata": {"version": "18446744073709551615"}}},
    ]});
    let mut twin = Twin::new();
    twin.hear(&of("u", 1, status.clone()));
    let told = twin.read(reading("temperature", "20", None));
    assert_eq!(reported(&told.reports[0], "temperature").unwrap().1, 701);
    let mut twin = twin.after_power_cut();
    twin.hear(&of("u", 1, json!("no status")));
    let told = twin.read(reading("temperature", "20", None));
    assert!(reported(&told.reports[0], "temperature").unwrap().1 > 701);

    // The node went back to a copy of its store.
    let mut twin = Twin::thermometer();
    twin.send(
        "twin/update",
        json!({"twin": {"target": {"actual": {"value": "1"}}, "temperature": {"actual": {"value": "1"}}}}),
    );
    let told = twin.hear(&of("u", 2, status));
    assert_eq!(reported(&told.reports[0], "target"), Some(("1".to_owned(), 701)));
    assert_eq!(reported(&told.reports[0], "temperature"), Some(("1".to_owned(), 501)));
    assert_eq!(twin.after_power_cut().send("twin/get", json!({})), twin.send("twin/get", json!({})));
}

#[test]
fn a_value_that_was_read_again_after_a_power_cut_is_newer_than_all_that_was_told() {
    let mut twin = Twin::thermometer();
    twin.read(reading("temperature", "20", None));
    let told = twin.read(reading("temperature", "21", None));
    let (_, lost) = reported(&told.reports[0], "temperature").unwrap();
    let mut twin = twin.after_power_cut();
    twin.hear(&thermometer("u", 1, None));
    let told = twin.read(reading("temperature", "20", None));
    let (value, version) = reported(&told.reports[0], "temperature").unwrap();
    assert!(value == "20" && version > lost, "{version} after {lost}");
    assert!(twin.read(reading("temperature", "20", None)).reports.is_empty());
    // An orderly end leaves no doubt of what it wrote.
    twin.read(reading("temperature", "22", None));
    twin.state.write_all();
    twin.state.end_run();
    twin.end_turn();
    let mut twin = twin.after_power_cut();
    twin.hear(&thermometer("u", 1, None));
    assert!(twin.read(reading("temperature", "22", None)).reports.is_empty());
}

#[test]
fn a_value_that_the_model_does_not_allow_is_refused_with_device_property_and_reason() {
    let mut twin = Twin::new();
    let ObjectEvent::Applied(object) = model(1) else { unreachable!() };
    let mut json: Value = serde_json::from_slice(&object.json).unwrap();
    (json["spec"]["properties"][0]["minimum"], json["spec"]["properties"][0]["maximum"]) =
        (json!("0"), json!("40"));
    twin.hear(&ObjectEvent::Applied(Object::from_json(json.to_string()).unwrap()));
    twin.hear(&thermometer("u", 1, None));
    let mut write = |value: &str| {
        let update = json!({"event_id": "e", "twin": {"target": {"expected": {"value": value}}, "a": {"actual": {"value": "1"}}}});
        let answers = twin.send("twin/update", update);
        assert_eq!(answers[0].0, "twin/update/result");
        (answers[0].1["code"].as_u64(), answers[0].1["reason"].as_str().unwrap_or_default().to_owned())
    };
    for bad in ["41", "-1", "warm", "1.5", "99999999999999999999"] {
        let (code, reason) = write(bad);
        assert_eq!(code, Some(400), "{bad}");
        for word in ["default/t-1", "target", "expected"] {
            assert!(reason.contains(word), "{reason}");
        }
    }
    for good in ["0", "40", ""] {
        assert_eq!(write(good).0, None, "{good}");
    }
}

#[test]
fn a_topic_of_what_cannot_be_a_device_is_answered_by_its_name() {
    let mut twin = Twin::thermometer();
    for bad in ["default/..", "default/a b", "a/b/c"] {
        let topic = format!("$hw/events/device/{bad}/twin/update");
        let answers = shown(twin.publish(&Publish { topic, payload: r#"{"twin":{}}"#.into() }));
        assert_eq!(answers[0].0, "$hw/events/device//twin/update/result");
        assert_eq!(answers[0].1["code"], 400);
        let name = bad.rsplit('/').next().unwrap();
        assert!(answers[0].1["reason"].as_str().unwrap().contains(name), "{answers:?}");
    }
}
