//! I want EdgeHub over a link of my own: a radio modem, a satellite terminal, a pipe between two programs.
//!
//! A link is a `Connection`: whole frames on lanes, in order within a lane. Here it is any pair of byte streams,
//! one lane byte and a length before each frame; the "modem" is an in-memory duplex pipe with a real CloudHub at
//! the other end, so one sees the session come up.
#![expect(clippy::print_stdout, reason = "an example speaks to people")]

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use async_trait::async_trait;
use bytes::Bytes;
use kubeedge_cloud::cloudhub::{self, CloudHub};
use kubeedge_core::{
    message::{Inventory, Lane, Snapshot},
    transport::{Connection, Listener, Peer, Transport, TransportError},
};
use kubeedge_edge::edgehub::{self, EdgeHub};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, split},
    sync::{Mutex, mpsc},
};
use tokio_util::sync::CancellationToken;

/// A connection over any byte stream.
#[derive(Debug)]
struct ModemConnection {
    peer: Peer,
    // Frames of all lanes share one stream, so a lane waits for the others: a modem has but one channel.
    writer: Mutex<WriteHalf<DuplexStream>>,
    reader: Mutex<(ReadHalf<DuplexStream>, Vec<u8>)>,
}

impl ModemConnection {
    fn new(peer: Peer, stream: DuplexStream) -> Self {
        let (reader, writer) = split(stream);
        Self { peer, writer: Mutex::new(writer), reader: Mutex::new((reader, Vec::new())) }
    }
}

/// Takes the first whole frame out of what has been read so far.
fn take_frame(read: &mut Vec<u8>) -> Result<Option<(Lane, Bytes)>, TransportError> {
    let [lane, a, b, c, d, ..] = read[..] else { return Ok(None) };
    let Some(lane) = Lane::from_index(lane.into()) else {
        return Err(TransportError::Malformed(format!("there is no lane {lane}")));
    };
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if length > lane.frame_limit() {
        return Err(TransportError::TooLong { lane, length: length as u64, limit: lane.frame_limit() });
    }
    if read.len() < 5 + length {
        return Ok(None);
    }
    let rest = read.split_off(5 + length);
    let frame = std::mem::replace(read, rest);
    Ok(Some((lane, Bytes::from(frame).slice(5..))))
}

fn over(error: std::io::Error) -> TransportError {
    TransportError::Closed(error.to_string())
}

#[async_trait]
impl Connection for ModemConnection {
    fn peer(&self) -> &Peer {
        &self.peer
    }

    fn path(&self) -> String {
        "modem".into()
    }

    async fn send(&self, lane: Lane, frame: Bytes) -> Result<(), TransportError> {
        if frame.len() > lane.frame_limit() {
            return Err(TransportError::TooLong {
                lane,
                length: frame.len() as u64,
                limit: lane.frame_limit(),
            });
        }
        let mut packet = vec![lane as u8];
        packet.extend_from_slice(&u32::try_from(frame.len()).unwrap_or(u32::MAX).to_be_bytes());
        packet.extend_from_slice(&frame);
        self.writer.lock().await.write_all(&packet).await.map_err(over)
    }

    async fn recv(&self) -> Result<Option<(Lane, Bytes)>, TransportError> {
        let mut guard = self.reader.lock().await;
        let (reader, read) = &mut *guard;
        loop {
            if let Some(frame) = take_frame(read)? {
                return Ok(Some(frame));
            }
            // What was read stays in the buffer, so dropping this future loses nothing.
            if reader.read_buf(read).await.map_err(over)? == 0 {
                return Ok(None);
            }
        }
    }

    async fn close(&self, _reason: &str) {
        let _ = self.writer.lock().await.shutdown().await;
    }
}

/// Dials: makes a pipe and hands its other end to the cloud.
#[derive(Debug)]
struct Modem(mpsc::Sender<DuplexStream>);

#[async_trait]
impl Transport for Modem {
    fn name(&self) -> &'static str {
        "modem"
    }

    async fn connect(&self) -> Result<Box<dyn Connection>, TransportError> {
        let (near, far) = tokio::io::duplex(64 << 10);
        self.0.send(far).await.map_err(|_| TransportError::Closed("the station is off".into()))?;
        Ok(Box::new(ModemConnection::new(Peer::Cloud, near)))
    }
}

/// The other end. A real one proves who dials; this line has but one node at its end.
#[derive(Debug)]
struct Station(Mutex<mpsc::Receiver<DuplexStream>>);

#[async_trait]
impl Listener for Station {
    async fn accept(&self) -> Result<Box<dyn Connection>, TransportError> {
        let stream = self.0.lock().await.recv().await;
        let stream = stream.ok_or_else(|| TransportError::Closed("the modem is off".into()))?;
        let node = "buoy-1".parse().map_err(|error| TransportError::Malformed(format!("{error}")))?;
        Ok(Box::new(ModemConnection::new(Peer::Node(node), stream)))
    }

    fn local_address(&self) -> String {
        "station".into()
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let stop = CancellationToken::new();
    let (dialled, answered) = mpsc::channel(1);

    let (inbox, outbox, mut cloud) = cloudhub::pipes();
    let listener: Box<dyn Listener> = Box::new(Station(Mutex::new(answered)));
    tokio::spawn(CloudHub::new(cloudhub::Config::default(), vec![listener], inbox, outbox).run(stop.clone()));

    let (inbox, outbox, mut edge) = edgehub::pipes();
    let config = edgehub::Config::new("buoy-1".parse()?);
    tokio::spawn(EdgeHub::new(config, Arc::new(Modem(dialled)), inbox, outbox).run(stop.clone()));

    // The parts that would answer: this cloud has no objects, and this edge holds none.
    tokio::spawn(async move {
        while let Some(call) = cloud.snapshots.recv().await {
            call.answer(Snapshot::default());
        }
    });
    tokio::spawn(async move {
        while let Some(call) = edge.inventory.recv().await {
            call.answer(Inventory::default());
        }
    });

    let online = edge.connectivity.wait_for(|connectivity| connectivity.is_online());
    println!("buoy-1 is {:?} over the modem", *tokio::time::timeout(Duration::from_secs(5), online).await??);
    stop.cancel();
    Ok(())
}
