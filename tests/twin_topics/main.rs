//! Every documented exchange of KubeEdge's device topics, over a real mosquitto with its stock clients.
//!
//! [`rows`] is the table: what is published, or comes from the cloud or a driver, and what must come on which topic,
//! field by field and nothing else. All rows share one broker and one edge: EventBus and DeviceTwin, wired as
//! in a composition root.

mod rows;
mod site;

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::{
    rows::{Row, rows},
    site::Site,
};

#[tokio::test(flavor = "multi_thread")]
async fn every_documented_exchange_gives_the_documented_payloads_and_codes() {
    let rows = rows();
    assert!(rows.len() >= 60, "{} rows", rows.len());
    let mut site = Site::start();
    let mut wrong = Vec::new();
    for row in &rows {
        site.act(&row.act);
        let came = site.answers();
        if let Err(why) = compare(row, &came) {
            wrong.push(format!("{}: {why}\n  came: {came:#?}", row.name));
        }
    }
    assert!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}

/// Compares what came with what must come, in order.
fn compare(row: &Row, came: &[(String, String)]) -> Result<(), String> {
    if came.len() != row.answers.len() {
        return Err(format!("{} messages must come", row.answers.len()));
    }
    for ((topic, payload), (wanted_topic, wanted)) in came.iter().zip(&row.answers) {
        if topic != wanted_topic {
            return Err(format!("{wanted_topic} must come, and {topic} did"));
        }
        let payload: Value = serde_json::from_str(payload).map_err(|error| format!("{topic}: {error}"))?;
        matches("", &payload, wanted).map_err(|why| format!("{topic}: {why}"))?;
    }
    Ok(())
}

/// Compares field by field. `<now>` stands for a time in milliseconds, `<date>` for one as text, `<id>` for a UUID, and
/// `<...words>` for a text that has these words, which a `|` divides.
fn matches(path: &str, came: &Value, wanted: &Value) -> Result<(), String> {
    match (came, wanted) {
        (Value::Object(came), Value::Object(wanted)) => {
            if let Some(surplus) = came.keys().find(|key| !wanted.contains_key(*key)) {
                return Err(format!("{path}/{surplus} must not be there"));
            }
            wanted.iter().try_for_each(|(key, wanted)| {
                let path = format!("{path}/{key}");
                let came = came.get(key).ok_or_else(|| format!("{path} must be there"))?;
                matches(&path, came, wanted)
            })
        }
        (Value::Array(came), Value::Array(wanted)) if came.len() == wanted.len() => came
            .iter()
            .zip(wanted)
            .enumerate()
            .try_for_each(|(at, (came, wanted))| matches(&format!("{path}/{at}"), came, wanted)),
        (came, Value::String(wanted)) if wanted.starts_with('<') && is_like(came, wanted) => Ok(()),
        (came, wanted) if came == wanted => Ok(()),
        (came, wanted) => Err(format!("{path} must be {wanted}, and is {came}")),
    }
}

fn is_like(came: &Value, wanted: &str) -> bool {
    match (wanted, came) {
        ("<now>", Value::Number(came)) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_millis();
            came.as_u64().is_some_and(|came| u128::from(came).abs_diff(now) < 120_000)
        }
        ("<date>", Value::String(came)) => came.len() == 20 && came.ends_with('Z'),
        ("<id>", Value::String(came)) => came.len() == 36 && came.matches('-').count() == 4,
        (words, Value::String(came)) => words
            .strip_prefix("<...")
            .and_then(|words| words.strip_suffix('>'))
            .is_some_and(|words| words.split('|').all(|word| came.contains(word))),
        (_, _) => false,
    }
}
