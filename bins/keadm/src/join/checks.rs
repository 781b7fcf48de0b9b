//! What has to be so before a machine can join, each with its name, its cause and its fix.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use kubeedge_core::{id::NodeName, join::JoinToken, tls::RootCertStore};
use kubeedge_edge::certificates::{self, Error, Server};
use serde_json::{Value, json};
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};

use super::{Join, Protocol, TIMEOUT};
use crate::{files::Places, system};

/// What was found, and what joining needs of it.
#[derive(Debug, Default)]
pub(super) struct Checked {
    checks: Vec<Check>,
    pub(super) node: Option<NodeName>,
    pub(super) token: Option<JoinToken>,
    pub(super) edgecore: Option<PathBuf>,
}

#[derive(Debug)]
pub(super) struct Check {
    pub(super) name: &'static str,
    outcome: Result<String, Failure>,
}

/// Why a check has failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) cause: String,
    pub(super) fix: String,
}

fn failure<T>(cause: impl ToString, fix: impl ToString) -> Result<T, Failure> {
    Err(Failure { cause: cause.to_string(), fix: fix.to_string() })
}

impl Checked {
    pub(super) fn failed(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| check.outcome.is_err())
    }

    fn add<T>(&mut self, name: &'static str, outcome: Result<(T, String), Failure>) -> Option<T> {
        let (value, outcome) = match outcome {
            Ok((value, detail)) => (Some(value), Ok(detail)),
            Err(failure) => (None, Err(failure)),
        };
        self.checks.push(Check { name, outcome });
        value
    }

    pub(super) fn lines(&self) -> Vec<String> {
        let line = |check: &Check| match &check.outcome {
            Ok(detail) => format!("[ok]     {}: {detail}", check.name),
            Err(Failure { cause, fix }) => format!("[failed] {}: {cause}\n         fix: {fix}", check.name),
        };
        self.checks.iter().map(line).collect()
    }

    pub(super) fn json(&self) -> Value {
        let one = |check: &Check| match &check.outcome {
            Ok(detail) => json!({ "check": check.name, "ok": true, "detail": detail }),
            Err(failure) => {
                json!({ "check": check.name, "ok": false, "cause": failure.cause, "fix": failure.fix })
            }
        };
        self.checks.iter().map(one).collect()
    }
}

/// Looks at everything, and does not stop at the first thing that is wrong.
pub(super) async fn run(join: &Join, places: &Places) -> Checked {
    let mut checked = Checked::default();
    checked.node = checked.add("node-name", node_name(join));
    checked.token = checked.add("token", token(join));
    checked.add("permissions", permissions(places));
    checked.add("not-joined-yet", not_joined_yet(join, places));
    checked.edgecore = checked.add("edgecore", edgecore(join, places));
    if let Some(node) = checked.node.clone() {
        checked.add("configuration", configuration(join, places, &node));
    }
    if places.is_whole_machine() {
        checked.add("processes", processes());
        checked.add("memory-cgroup", memory_cgroup());
        checked.add("container-runtime", runtime(&join.remote_runtime_endpoint));
    }
    cloud(join, &mut checked).await;
    checked
}

/// What the flags make of edgecore.yaml.
fn configuration(join: &Join, places: &Places, node: &NodeName) -> Result<((), String), Failure> {
    match super::config::yaml(join, places, node) {
        Ok(_) => Ok(((), "edgecore knows all keys that are set".to_owned())),
        Err(error) => failure(
            format!("{error:#}"),
            "look at --set and --labels; `edgecore --defaultconfig` prints all keys with their types",
        ),
    }
}

fn node_name(join: &Join) -> Result<(NodeName, String), Failure> {
    let text = join.edgenode_name.clone().unwrap_or_else(system::hostname);
    match text.parse::<NodeName>() {
        Ok(node) => Ok((node.clone(), node.to_string())),
        Err(error) => failure(error, "give --edgenode-name with lower case letters, digits, - and . only"),
    }
}

fn token(join: &Join) -> Result<(JoinToken, String), Failure> {
    const FIX: &str = "run `keadm gettoken` in the cloud, and give what it prints as --token";
    let text = match &join.token_file {
        None => join.token.clone(),
        Some(file) => match fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) => return failure(format!("cannot read {}: {error}", file.display()), FIX),
        },
    };
    if text.trim().is_empty() {
        return failure("there is no token", FIX);
    }
    let token: JoinToken = match text.parse() {
        Ok(token) => token,
        Err(error) => return failure(error, FIX),
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    match token.expires() {
        Some(end) if end <= now => {
            let ago = Duration::from_secs((now - end).as_secs());
            failure(
                format!("the token has expired {ago:?} ago, by the clock of this machine"),
                format!("{FIX}; if the clock is wrong, set it"),
            )
        }
        _ => Ok((token, "it is a token, and has not expired".to_owned())),
    }
}

fn permissions(places: &Places) -> Result<((), String), Failure> {
    let folder = places.at("/etc/kubeedge");
    let probe = folder.join(".keadm");
    let tried = fs::create_dir_all(&folder)
        .and_then(|()| fs::write(&probe, ""))
        .and_then(|()| fs::remove_file(&probe));
    match tried {
        Ok(()) => Ok(((), format!("{} can be written", folder.display()))),
        Err(error) => {
            failure(format!("cannot write into {}: {error}", folder.display()), "run keadm as root")
        }
    }
}

fn not_joined_yet(join: &Join, places: &Places) -> Result<((), String), Failure> {
    let files = join.files(places);
    let known = [places.config(), files.certificate, files.key];
    match known.iter().find(|file| file.exists()) {
        None => Ok(((), "nothing is left of an earlier node".to_owned())),
        Some(file) => failure(
            format!("{} is there: this machine has joined before", file.display()),
            "run `keadm reset edge` first, if it shall join anew",
        ),
    }
}

fn edgecore(join: &Join, places: &Places) -> Result<(PathBuf, String), Failure> {
    let beside = std::env::current_exe().ok().and_then(|keadm| Some(keadm.parent()?.join("edgecore")));
    let found = match &join.edgecore {
        Some(given) => Some(given.clone()).filter(|file| is_program(file)),
        None => beside.into_iter().chain([places.edgecore()]).find(|file| is_program(file)),
    };
    match found {
        Some(file) => Ok((file.clone(), file.display().to_string())),
        None => failure(
            "there is no program edgecore, neither beside keadm nor at /usr/local/bin nor where --edgecore says",
            "put it beside keadm, or give --edgecore",
        ),
    }
}

fn is_program(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

fn processes() -> Result<((), String), Failure> {
    if system::runs("edgecore") {
        return failure(
            "edgecore runs already",
            "run `keadm reset edge` first, if the machine shall join anew",
        );
    }
    if system::runs("kubelet") {
        return failure(
            "a kubelet runs here, and both would claim the machine and its pods",
            "stop the kubelet, or take another machine",
        );
    }
    Ok(((), "neither edgecore nor a kubelet runs".to_owned()))
}

fn memory_cgroup() -> Result<((), String), Failure> {
    let v2 = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    let v1 = fs::read_to_string("/proc/cgroups").unwrap_or_default();
    let v1 = v1.lines().any(|line| line.starts_with("memory\t") && line.ends_with("\t1"));
    if v1 || v2.split_whitespace().any(|controller| controller == "memory") {
        return Ok(((), "the kernel limits memory".to_owned()));
    }
    failure(
        "the kernel's memory cgroup is switched off, so pods would have no limits",
        "add cgroup_enable=memory cgroup_memory=1 to the kernel's command line (on a Raspberry Pi: cmdline.txt), and reboot",
    )
}

fn runtime(endpoint: &str) -> Result<((), String), Failure> {
    let Some(socket) = endpoint.strip_prefix("unix://") else {
        return failure(
            format!("{endpoint:?} is no unix socket"),
            "give --remote-runtime-endpoint unix:///path",
        );
    };
    match UnixStream::connect(socket) {
        Ok(_) => Ok(((), format!("containerd answers at {socket}"))),
        Err(error) => failure(
            format!("nobody answers at {socket}: {error}"),
            "install and start containerd (`apt install containerd`), or give --remote-runtime-endpoint",
        ),
    }
}

async fn cloud(join: &Join, checked: &mut Checked) {
    let Some((hub, cloud)) = join.hub().zip(join.cloud()) else {
        let wrong = format!("{:?} is not host:port", join.cloudcore_ipport);
        checked.add::<()>("cloud-address", failure(wrong, "give --cloudcore-ipport such as 192.0.2.1:10000"));
        return;
    };
    let (Some(node), Some(token)) = (checked.node.clone(), checked.token.clone()) else { return };
    let files = join.files(&Places::new(Path::new("/")));
    let config = certificates::Config {
        timeout: TIMEOUT,
        ..certificates::Config::new(node.clone(), cloud.clone(), files)
    };
    let authority = certificates::fetch_authority(&config, &token).await;
    let authority = authority.map(|der| (der, format!("{cloud} has the authority that the token names")));
    let authority = authority.map_err(|error| told(error, &node));
    let Some(authority) = checked.add("cloud", authority) else { return };
    let mut roots = RootCertStore::empty();
    if let Err(error) = roots.add(authority.into()) {
        checked.add::<()>("cloud", failure(error, "create the cloud's authority anew"));
        return;
    }
    checked.add("node-name-free", name_is_free(&cloud, roots, &node).await);
    let reached = match join.hub_protocol {
        Protocol::Websocket => port(&hub).await,
        Protocol::Quic => udp_port(&hub, &cloud).await,
    };
    checked.add("hub-port", reached);
}

async fn name_is_free(
    cloud: &Server,
    roots: RootCertStore,
    node: &NodeName,
) -> Result<((), String), Failure> {
    match certificates::name_is_taken(cloud, roots, node, TIMEOUT).await {
        Ok(false) => Ok(((), format!("the cloud has no node {node} yet"))),
        Ok(true) => failure(
            format!("the cloud has a node {node} already"),
            format!(
                "give another --edgenode-name, or `kubectl delete node {node}` if it is this machine's own"
            ),
        ),
        Err(error) => Err(told(error, node)),
    }
}

async fn port(hub: &Server) -> Result<((), String), Failure> {
    let why = match timeout(TIMEOUT, TcpStream::connect((hub.host.as_str(), hub.port))).await {
        Ok(Ok(_)) => return Ok(((), format!("CloudHub listens at {hub}"))),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {TIMEOUT:?}"),
    };
    failure(
        format!("{hub} cannot be reached: {why}"),
        "open this TCP port of the cloud, and look whether cloudcore runs",
    )
}

/// What can be seen of a port of UDP: that its host has an address. Only edgecore, with its certificate, is answered there.
/// That the cloud runs at this address was seen before, by its port for joining.
async fn udp_port(hub: &Server, cloud: &Server) -> Result<((), String), Failure> {
    let why = match timeout(TIMEOUT, lookup_host((hub.host.as_str(), hub.port))).await {
        Ok(Ok(mut found)) => match found.next() {
            Some(address) => {
                let (ip, port) = (address.ip(), hub.port);
                return Ok((
                    (),
                    format!(
                        "{} is {ip}, and the cloud answers at {cloud}; whether UDP port {port} is open cannot be seen before \
                         edgecore runs. If it is not, edgecore takes WebSocket, TCP port 10000",
                        hub.host
                    ),
                ));
            }
            None => "it has no address".to_owned(),
        },
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {TIMEOUT:?}"),
    };
    failure(
        format!("the name {} cannot be resolved: {why}", hub.host),
        "give a name that this machine's DNS knows, or an address, as --cloudcore-ipport",
    )
}

/// The errors of the certificates say both in one sentence; here each half has its place.
#[expect(clippy::wildcard_enum_match_arm, reason = "the others have one fix")]
pub(super) fn told(error: Error, node: &NodeName) -> Failure {
    let by_reason;
    let fix: &str = match &error {
        Error::Unreachable { .. } => {
            "look whether cloudcore runs there, and open its port for joining (10002)"
        }
        Error::ForeignAuthority { .. } => {
            "run `keadm gettoken` in this cloud, and compare --cloudcore-ipport"
        }
        Error::NameMismatch { .. } => {
            "dial a name that the certificate has, or add this one to advertiseAddress or dnsNames of cloudcore.yaml"
        }
        Error::ServerRefused { .. } => "set the clocks of both machines, and look at cloudcore's certificate",
        Error::File { .. } => "run keadm as root, look at the space and the rights there, and join again",
        Error::Refused { reason, .. } => {
            by_reason = of_refusal(reason, node);
            &by_reason
        }
        _ => "look at what cloudcore logs at this moment",
    };
    Failure { cause: error.to_string(), fix: fix.to_owned() }
}

/// What to do about a refusal, by its one word; KubeEdge's own cloud gives none.
fn of_refusal(reason: &str, node: &NodeName) -> String {
    match reason {
        "TokenMalformed" | "TokenForeign" | "TokenExpired" | "NoCredentials" => {
            "run `keadm gettoken` in the cloud, and give what it prints as --token".to_owned()
        }
        "TokenUsed" | "NodeConnected" | "NodeExists" => format!(
            "give another --edgenode-name, or `kubectl delete node {node}` if it is this machine's own and runs no more"
        ),
        "NodeOfCluster" => "give another --edgenode-name: this one is of a machine of the cluster".to_owned(),
        "NodeShutOut" => {
            format!("`kubectl annotate node {node} node.kubeedge.io/shut-out-` in the cloud lets it in again")
        }
        "TooMany" | "Unavailable" | "TooSlow" => "join again in a minute".to_owned(),
        _ => "look at what cloudcore logs at this moment".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(host: &str, port: u16) -> Server {
        Server { host: host.to_owned(), port }
    }

    #[tokio::test]
    async fn of_a_port_of_udp_the_name_is_checked_and_it_is_said_that_the_port_is_not() {
        let ((), told) = udp_port(&server("127.0.0.1", 10001), &server("127.0.0.1", 10002)).await.unwrap();
        assert!(
            told.starts_with("127.0.0.1 is 127.0.0.1, and the cloud answers at 127.0.0.1:10002; "),
            "{told}"
        );
        assert!(told.contains("whether UDP port 10001 is open cannot be seen"), "{told}");
        // No label of a name may be so long, so that nobody has to be asked.
        let nowhere = "x".repeat(64);
        let failed = udp_port(&server(&nowhere, 10001), &server(&nowhere, 10002)).await.unwrap_err();
        assert!(failed.cause.contains("cannot be resolved: ") && failed.fix.contains("DNS"), "{failed:?}");
    }

    #[test]
    fn a_file_that_cannot_be_stored_is_no_matter_of_the_clouds_logs() {
        let error = Error::File {
            file: "/etc/kubeedge/certs/server.key".into(),
            source: std::io::ErrorKind::PermissionDenied.into(),
        };
        let failed = told(error, &"edge-1".parse().unwrap());
        assert!(failed.cause.contains("server.key") && failed.fix.contains("as root"), "{failed:?}");
    }
}
