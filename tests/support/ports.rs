//! Ports for processes that a test starts.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    ops::Range,
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Result, bail};

/// A port of a range that is free for TCP and UDP on the loopback address, and that this gives to nobody else meanwhile.
///
/// The range is above the ports of KubeEdge, and below those that the kernel gives to connections (`ip_local_port_range`): one of
/// them could have it before whoever it is for listens. Tests run in processes of their own, which begin to look at different
/// places.
pub(super) fn free_port_of(ports: Range<u16>) -> Result<u16> {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    for _ in 0..ports.len() {
        let place = process::id().wrapping_mul(61).wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed));
        let port = ports.start + u16::try_from(place % u32::try_from(ports.len())?)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port was found")
}
