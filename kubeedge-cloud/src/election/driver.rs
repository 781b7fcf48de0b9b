use std::time::Instant;

use jiff::Timestamp;
use kube::Client;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Config,
    state::{Record, State, Step},
};
use crate::controller::{
    api::{Api, Error, Place},
    lease::LEASES,
    now, sleep_until,
};

/// Stands for election until `stop`.
pub(super) async fn run(config: Config, client: Client, leads: watch::Sender<bool>, stop: CancellationToken) {
    let api = Api::new(client);
    let mut state = State::new(config.clone());
    loop {
        // A leader whose attempt hangs must cease to lead in time, however often it has failed before.
        let began = now();
        let leads_until = state.poll_timeout().filter(|_| state.leads(began));
        let left = leads_until.map_or(config.renew_deadline, |until| until.saturating_duration_since(began));
        let attempt = timeout(left.min(config.renew_deadline), attempt(&api, &config, &mut state));
        let attempted = tokio::select! {
            () = stop.cancelled() => break,
            attempted = attempt => attempted,
        };
        if let Ok(Err(error)) = attempted {
            tracing::debug!(lease = config.lease, %error, "the election cannot be held");
        }
        publish(&config, &state, &leads);
        tokio::select! {
            () = stop.cancelled() => break,
            () = sleep(config.retry_period) => {}
            () = sleep_until(state.poll_timeout().filter(|at| *at > now())) => publish(&config, &state, &leads),
        }
    }
    if state.leads(now()) {
        leads.send_replace(false);
        let _ = timeout(config.retry_period, give_back(&api, &config)).await;
    }
}

fn publish(config: &Config, state: &State, leads: &watch::Sender<bool>) {
    let now = state.leads(now());
    if leads.send_if_modified(|before| std::mem::replace(before, now) != now) {
        tracing::info!(
            lease = config.lease,
            identity = config.identity,
            leads = now,
            "leadership has changed"
        );
    }
}

async fn attempt(api: &Api, config: &Config, state: &mut State) -> Result<(), Error> {
    let began = now();
    let record = match api.value(place(config)).await {
        Err(error) if error.is_missing() => return create(api, config, state, began).await,
        other => read(&other?),
    };
    let Step::Write { transitions } = state.handle_record(&record, now()) else { return Ok(()) };
    let mut spec = spec(config);
    if let Some(transitions) = transitions {
        spec["leaseTransitions"] = transitions.into();
        spec["acquireTime"] = spec["renewTime"].clone();
    }
    let patch = json!({ "metadata": { "resourceVersion": record.version }, "spec": spec });
    let written = api.merge(place(config), "", &patch).await?.value()?;
    state.handle_written(read(&written), began, now());
    Ok(())
}

async fn create(api: &Api, config: &Config, state: &mut State, began: Instant) -> Result<(), Error> {
    let mut spec = spec(config);
    spec["leaseTransitions"] = 0.into();
    spec["acquireTime"] = spec["renewTime"].clone();
    let lease = json!({
        "apiVersion": LEASES.api_version,
        "kind": LEASES.kind,
        "metadata": { "name": config.lease, "namespace": config.namespace },
        "spec": spec,
    });
    let created = api.create(place(config), &lease).await?;
    state.handle_written(read(&created), began, now());
    Ok(())
}

/// Leaves the Lease to whoever comes first.
async fn give_back(api: &Api, config: &Config) -> Result<(), Error> {
    let record = read(&api.value(place(config)).await?);
    if record.holder == config.identity {
        let patch = json!({
            "metadata": { "resourceVersion": record.version },
            "spec": { "holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": micros() },
        });
        api.merge(place(config), "", &patch).await?;
    }
    Ok(())
}

fn spec(config: &Config) -> Value {
    json!({
        "holderIdentity": config.identity,
        "leaseDurationSeconds": config.lease_duration.as_secs().max(1),
        "renewTime": micros(),
    })
}

fn read(lease: &Value) -> Record {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Record {
        holder: text(&lease["spec"]["holderIdentity"]),
        transitions: lease["spec"]["leaseTransitions"].as_i64().unwrap_or(0),
        renewed: text(&lease["spec"]["renewTime"]),
        version: text(&lease["metadata"]["resourceVersion"]),
    }
}

fn micros() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

fn place(config: &Config) -> Place<'_> {
    Place { kind: LEASES, namespace: &config.namespace, name: &config.lease }
}
