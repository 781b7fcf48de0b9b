//! A UDP relay that can be cut without a word: packets are dropped, and nobody is told.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{net::UdpSocket, task::JoinSet};

/// 2 KiB: more than a QUIC packet on any usual link.
const PACKET: usize = 2048;

/// A relay between QUIC clients and one server. Dropping it ends it.
#[derive(Debug)]
pub struct UdpRelay {
    address: SocketAddr,
    cut: Arc<AtomicBool>,
    _tasks: JoinSet<()>,
}

impl UdpRelay {
    /// Starts a relay to `server` on a port that the system chooses.
    ///
    /// # Errors
    /// If no port can be had.
    pub async fn start(server: SocketAddr) -> io::Result<Self> {
        let front = Arc::new(UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?);
        let address = front.local_addr()?;
        let cut = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        tasks.spawn(forward(front, server, cut.clone()));
        Ok(Self { address, cut, _tasks: tasks })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Drops all packets from here on.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
    }

    /// Lets packets pass again.
    pub fn restore(&self) {
        self.cut.store(false, Ordering::SeqCst);
    }
}

/// Takes packets of clients to the server; each client gets a socket of its own for the way back.
async fn forward(front: Arc<UdpSocket>, server: SocketAddr, cut: Arc<AtomicBool>) {
    let mut clients: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut ways_back = JoinSet::new();
    let mut packet = [0; PACKET];
    loop {
        let Ok((length, client)) = front.recv_from(&mut packet).await else { continue };
        let back = match clients.get(&client) {
            Some(back) => back.clone(),
            None => {
                let Ok(back) = UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await else { continue };
                if back.connect(server).await.is_err() {
                    continue;
                }
                let back = Arc::new(back);
                clients.insert(client, back.clone());
                ways_back.spawn(return_packets(front.clone(), client, back.clone(), cut.clone()));
                back
            }
        };
        if !cut.load(Ordering::SeqCst) {
            let _ = back.send(&packet[..length]).await;
        }
    }
}

async fn return_packets(
    front: Arc<UdpSocket>,
    client: SocketAddr,
    back: Arc<UdpSocket>,
    cut: Arc<AtomicBool>,
) {
    let mut packet = [0; PACKET];
    loop {
        match back.recv(&mut packet).await {
            Ok(length) if !cut.load(Ordering::SeqCst) => {
                let _ = front.send_to(&packet[..length], client).await;
            }
            Ok(_) => {}
            // The server's port is closed for a moment, as while it restarts.
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
        }
    }
}
