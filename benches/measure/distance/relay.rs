//! A long way: packets of UDP pass here, each after the same time, in order, and none is lost.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::Result;
use tokio::{
    net::UdpSocket,
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};

/// More than a datagram has.
const DATAGRAM: usize = 64 << 10;

/// It ends when it is dropped.
pub(crate) struct Relay {
    /// Where it is reached.
    pub(crate) port: u16,
    _tasks: JoinSet<()>,
}

impl Relay {
    /// A relay for one client, to a port of this machine; each packet is held back for `delay`.
    pub(crate) async fn start(to: u16, delay: Duration) -> Result<Self> {
        let outer = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?);
        let inner = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?);
        let port = outer.local_addr()?.port();
        let (client, of_client) = watch::channel(None);
        let (_, server) = watch::channel(Some(SocketAddr::from((Ipv4Addr::LOCALHOST, to))));
        let mut tasks = JoinSet::new();
        for (from, via, goes_to, came_from) in
            [(outer.clone(), inner.clone(), server, Some(client)), (inner, outer, of_client, None)]
        {
            let (on_its_way, arriving) = mpsc::unbounded_channel();
            tasks.spawn(take(from, delay, on_its_way, came_from));
            tasks.spawn(hand_on(arriving, via, goes_to));
        }
        Ok(Self { port, _tasks: tasks })
    }
}

type Packet = (Instant, Vec<u8>);

async fn take(
    from: Arc<UdpSocket>,
    delay: Duration,
    on_its_way: mpsc::UnboundedSender<Packet>,
    came_from: Option<watch::Sender<Option<SocketAddr>>>,
) {
    let mut buffer = vec![0; DATAGRAM];
    while let Ok((length, sender)) = from.recv_from(&mut buffer).await {
        if let Some(came_from) = &came_from {
            came_from.send_if_modified(|known| known.replace(sender) != Some(sender));
        }
        let Some(packet) = buffer.get(..length) else { continue };
        if on_its_way.send((Instant::now() + delay, packet.to_vec())).is_err() {
            return;
        }
    }
}

async fn hand_on(
    mut arriving: mpsc::UnboundedReceiver<Packet>,
    via: Arc<UdpSocket>,
    goes_to: watch::Receiver<Option<SocketAddr>>,
) {
    while let Some((at, packet)) = arriving.recv().await {
        sleep_until(at).await;
        let to = *goes_to.borrow();
        if let Some(to) = to {
            // What does not pass is lost, as on any way.
            let _ = via.send_to(&packet, to).await;
        }
    }
}
