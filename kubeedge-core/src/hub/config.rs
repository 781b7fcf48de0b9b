use std::time::Duration;

/// How items flow on a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// At most so many items of a lane are on their way or being stored by the peer.
    pub window_items: usize,
    /// And at most so many bytes, or one item.
    pub window_bytes: usize,
    /// With nothing heard about a lane's items for this long, one of them is sent again.
    ///
    /// The transports lose nothing while they live, so this is for the rest: it need not be quick.
    pub retry_after: Duration,
    /// The pause between such repetitions doubles up to this.
    pub retry_after_max: Duration,
}

impl Default for Flow {
    fn default() -> Self {
        Self {
            // A thousand objects take two round trips, which are half a second on a satellite.
            window_items: 512,
            window_bytes: 1 << 20,
            retry_after: Duration::from_secs(1),
            retry_after_max: Duration::from_secs(30),
        }
    }
}

/// What the edge's end of the link goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EdgeConfig {
    /// How items flow.
    pub flow: Flow,
    /// The pause after the first failed attempt to connect; it doubles with each further one.
    pub backoff_min: Duration,
    /// The longest pause between attempts. It is short, because a field site with a flickering uplink has to be
    /// in sync seconds after it is back; the cloud spreads a crowd by [`super::Frame::Refusal`].
    pub backoff_max: Duration,
    /// How long the cloud may take to answer a hello.
    pub hello_timeout: Duration,
    /// How long a new session waits for the part to store what the last session delivered, before the part is
    /// asked what it holds.
    pub settle_timeout: Duration,
    /// How many objects one part of an inventory names.
    pub inventory_part: usize,
    /// How many uploads wait for the cloud at most.
    pub uploads_max: usize,
    /// And at most so many bytes of them, or one more.
    pub uploads_bytes_max: usize,
    /// How many events wait for the cloud at most. They are acknowledged when the API has them, so this is also what a
    /// cloud without its API has to hold of each node: the rest waits with whoever records them, who counts repetitions
    /// together.
    pub events_max: usize,
    /// And at most so many bytes of them, or one more.
    pub events_bytes_max: usize,
    /// How many queries wait for an answer at most.
    pub queries_max: usize,
    /// How long an answer to a query may take.
    pub query_timeout: Duration,
    /// How many requests of the cloud are being worked on at most.
    pub requests_max: usize,
    /// What the hello says of the software.
    pub software: String,
}

impl Default for EdgeConfig {
    fn default() -> Self {
        Self {
            flow: Flow::default(),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_millis(1500),
            hello_timeout: Duration::from_secs(5),
            settle_timeout: Duration::from_secs(2),
            inventory_part: 128,
            uploads_max: 1024,
            uploads_bytes_max: 4 << 20,
            // Fifty a second over a satellite.
            events_max: 32,
            events_bytes_max: 64 << 10,
            queries_max: 64,
            query_timeout: Duration::from_secs(10),
            requests_max: 32,
            software: concat!("kubeedge-rs/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

/// What the cloud's end of the link goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// How items flow.
    pub flow: Flow,
    /// Each side says something at least this often.
    /// 15 s: KubeEdge's default heartbeat, so mixed fleets agree on who is offline.
    pub heartbeat: Duration,
    /// How long the edge may take to say hello.
    pub hello_timeout: Duration,
    /// How many objects an edge may say that it holds.
    pub inventory_max: usize,
    /// How many requests to the edge, and queries of the edge, wait for an answer at most.
    pub calls_max: usize,
    /// How many bytes an edge may have on their way that are not acknowledged, over all lanes. An edge keeps to the
    /// windows of [`EdgeConfig`], which allow 11 MiB at most.
    pub unacked_bytes_max: usize,
    /// How much memory a session may take of which no other has a part: the names of what waits for the edge, what it
    /// holds while both compare, and what it has sent and nobody has stored.
    pub memory_max: usize,
    /// How long an edge that was refused for what it is, not for what the cloud is busy with, stays away.
    pub refused_for: Duration,
    /// Kinds for which no controller of this cloud speaks: what an edge holds of them is not taken from it, though
    /// no snapshot has it.
    pub kinds_left_alone: Vec<String>,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            flow: Flow::default(),
            heartbeat: Duration::from_secs(15),
            hello_timeout: Duration::from_secs(10),
            inventory_max: 100_000,
            calls_max: 64,
            unacked_bytes_max: 16 << 20,
            memory_max: 48 << 20,
            refused_for: Duration::from_secs(60),
            kinds_left_alone: Vec::new(),
        }
    }
}
