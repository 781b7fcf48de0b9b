//! What stands before the replicas of a cloud: one address for all of them.

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use tokio::{net::UdpSocket, task::JoinSet};

/// 2 KiB: more than a QUIC packet on any usual link.
const PACKET: usize = 2048;

/// Leads each client to one of several servers over UDP, in turns, and knows nothing of their health. Dropping it ends it.
pub(crate) struct Balancer {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Balancer {
    /// Starts it before the servers at these ports of the loopback address.
    pub(crate) async fn start(ports: Vec<u16>) -> io::Result<Self> {
        let front = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?);
        let address = front.local_addr()?;
        let mut tasks = JoinSet::new();
        tasks.spawn(lead(front, ports));
        Ok(Self { address, _tasks: tasks })
    }

    /// Where clients connect.
    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }
}

async fn lead(front: Arc<UdpSocket>, ports: Vec<u16>) {
    let mut ports = ports.into_iter().cycle();
    let mut clients: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut ways_back = JoinSet::new();
    let mut packet = [0; PACKET];
    loop {
        let Ok((length, client)) = front.recv_from(&mut packet).await else { continue };
        let back = match clients.get(&client) {
            Some(back) => back.clone(),
            None => {
                let Some(port) = ports.next() else { return };
                let Ok(back) = way_to(port).await else { continue };
                clients.insert(client, back.clone());
                ways_back.spawn(lead_back(front.clone(), client, back.clone()));
                back
            }
        };
        let _ = back.send(&packet[..length]).await;
    }
}

async fn way_to(port: u16) -> io::Result<Arc<UdpSocket>> {
    let back = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    back.connect((Ipv4Addr::LOCALHOST, port)).await?;
    Ok(Arc::new(back))
}

async fn lead_back(front: Arc<UdpSocket>, client: SocketAddr, back: Arc<UdpSocket>) {
    let mut packet = [0; PACKET];
    loop {
        match back.recv(&mut packet).await {
            Ok(length) => drop(front.send_to(&packet[..length], client).await),
            // The server's port is closed, as while it is away.
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
        }
    }
}
