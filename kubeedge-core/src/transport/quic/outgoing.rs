//! Sending: from the lanes' queues to streams, in one task per connection.

use std::sync::Arc;

use bytes::Bytes;
use quinn::{Connection, SendStream};

use super::connection::reason;
use crate::{
    message::Lane,
    transport::lanes::{End, Lanes},
};

/// Opens a lane's stream and says which lane it is.
pub(super) async fn open(connection: &Connection, lane: Lane) -> Result<SendStream, quinn::WriteError> {
    let mut stream = connection.open_uni().await?;
    // A stream that was just opened takes a priority; it fails only on one that is closed.
    drop(stream.set_priority(priority(lane)));
    stream.write_all(&[lane.index() as u8]).await?;
    Ok(stream)
}

/// Which streams' bytes go into the next packet first. Quinn sends nothing of a lower priority while a higher one
/// has bytes, so only what is small and urgent is above the rest, which shares equally.
fn priority(lane: Lane) -> i32 {
    match lane {
        Lane::Heartbeat => 2,
        Lane::Pods => 1,
        Lane::Config | Lane::Devices | Lane::Bulk => 0,
    }
}

/// Writes what the lanes hold until they end in order and the peer has it all, or the connection is over.
/// `heartbeat` is that lane's stream if it is open.
pub(super) async fn write(connection: Connection, lanes: Arc<Lanes>, heartbeat: Option<SendStream>) {
    let [pods, config, devices, bulk] = [Lane::Pods, Lane::Config, Lane::Devices, Lane::Bulk]
        .map(|lane| write_lane(&connection, &lanes, lane, None));
    let all = async {
        tokio::join!(write_lane(&connection, &lanes, Lane::Heartbeat, heartbeat), pods, config, devices, bulk)
    };
    tokio::select! {
        _ = all => {}
        error = connection.closed() => lanes.end(End::Broken(reason(&error))),
    }
}

async fn write_lane(connection: &Connection, lanes: &Lanes, lane: Lane, mut stream: Option<SendStream>) {
    while let Ok(Some(frame)) = lanes.pop_lane(lane).await {
        // Boxed, so that a lane without a frame, which is most of them, has no room for what writing one takes.
        if let Err(error) = Box::pin(write_frame(connection, lane, &mut stream, frame)).await {
            lanes.end(End::Broken(match connection.close_reason() {
                Some(closed) => reason(&closed),
                None => format!("lane {lane:?} cannot be written: {error}"),
            }));
            return;
        }
    }
    if let Some(mut stream) = stream
        && stream.finish().is_ok()
    {
        // Ends when the peer has acknowledged every byte; whoever closes bounds this wait.
        drop(stream.stopped().await);
    }
}

async fn write_frame(
    connection: &Connection,
    lane: Lane,
    stream: &mut Option<SendStream>,
    frame: Bytes,
) -> Result<(), quinn::WriteError> {
    let stream = match stream {
        Some(stream) => stream,
        None => stream.insert(open(connection, lane).await?),
    };
    // Frames are at most a few MiB long: `Lanes::push` checks.
    stream.write_all(&(frame.len() as u32).to_be_bytes()).await?;
    stream.write_chunk(frame).await
}
