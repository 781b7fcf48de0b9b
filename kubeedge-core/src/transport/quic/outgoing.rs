//! Sending: from the lanes' queues to streams, in one task per connection.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::Poll,
};

use bytes::Bytes;
use quinn::{Connection, SendStream, WriteError};

use super::{code, connection::reason};
use crate::{
    message::Lane,
    transport::lanes::{End, Lanes},
};

/// Opens a lane's stream and says which lane it is.
async fn open(connection: &Connection, lane: Lane) -> Result<SendStream, WriteError> {
    let mut stream = connection.open_uni().await?;
    // A stream that was just opened takes a priority; it fails only on one that is closed.
    drop(stream.set_priority(priority(lane)));
    stream.write_all(&[lane.index() as u8]).await?;
    Ok(stream)
}

/// Which streams' bytes go into the next packet first. Quinn sends nothing of a lower priority while a higher one
/// has bytes, so only what is small and urgent is above the rest, which shares equally.
pub(super) fn priority(lane: Lane) -> i32 {
    match lane {
        Lane::Heartbeat => 2,
        Lane::Pods => 1,
        Lane::Config | Lane::Devices | Lane::Bulk => 0,
    }
}

/// Writes what the lanes hold until they end in order and the peer has it all, or the connection is over.
pub(super) async fn write(connection: Connection, lanes: Arc<Lanes>) {
    let mut writer = Writer { streams: Default::default() };
    tokio::select! {
        written = writer.write_all(&connection, &lanes) => if let Err((lane, error)) = written {
            let why = match connection.close_reason() {
                Some(closed) => reason(&closed),
                None => format!("lane {lane:?} cannot be written: {error}"),
            };
            connection.close(code::MALFORMED, why.as_bytes());
            lanes.end(End::Broken(why));
        },
        error = connection.closed() => lanes.end(End::Broken(reason(&error))),
    }
}

/// The streams of a connection. One frame of each lane may be on its way; an idle lane has room for no more than its
/// stream, since most lanes of most connections are idle.
struct Writer {
    streams: [Slot; Lane::ALL.len()],
}

enum Slot {
    Idle(Option<SendStream>),
    Writing(Writing),
}

type Writing = Pin<Box<dyn Future<Output = Result<SendStream, WriteError>> + Send>>;

impl Default for Slot {
    fn default() -> Self {
        Self::Idle(None)
    }
}

impl Writer {
    async fn write_all(&mut self, connection: &Connection, lanes: &Lanes) -> Result<(), (Lane, WriteError)> {
        loop {
            let idle = self.idle();
            tokio::select! {
                written = self.written() => written?,
                taken = lanes.pop_of(idle) => match taken {
                    Ok(Some((lane, frame))) => self.begin(connection, lane, frame),
                    // A busy lane may have more.
                    Ok(None) if self.is_busy() => self.written().await?,
                    Ok(None) => break,
                    Err(_) => return Ok(()),
                },
            }
        }
        for slot in &mut self.streams {
            if let Slot::Idle(Some(stream)) = slot
                && stream.finish().is_ok()
            {
                // Ends when the peer has acknowledged every byte; whoever closes bounds this wait.
                drop(stream.stopped().await);
            }
        }
        Ok(())
    }

    fn idle(&self) -> [bool; Lane::ALL.len()] {
        Lane::ALL.map(|lane| matches!(self.streams[lane.index()], Slot::Idle(_)))
    }

    fn is_busy(&self) -> bool {
        self.idle().contains(&false)
    }

    fn begin(&mut self, connection: &Connection, lane: Lane, frame: Bytes) {
        let slot = &mut self.streams[lane.index()];
        if let Slot::Idle(stream) = slot {
            *slot = Slot::Writing(Box::pin(write_frame(connection.clone(), lane, stream.take(), frame)));
        }
    }

    /// Waits until a frame has been written.
    async fn written(&mut self) -> Result<(), (Lane, WriteError)> {
        poll_fn(|context| {
            for lane in Lane::ALL {
                let slot = &mut self.streams[lane.index()];
                if let Slot::Writing(writing) = slot
                    && let Poll::Ready(written) = writing.as_mut().poll(context)
                {
                    *slot = Slot::Idle(None);
                    return Poll::Ready(match written {
                        Ok(stream) => {
                            *slot = Slot::Idle(Some(stream));
                            Ok(())
                        }
                        Err(error) => Err((lane, error)),
                    });
                }
            }
            Poll::Pending
        })
        .await
    }
}

async fn write_frame(
    connection: Connection,
    lane: Lane,
    stream: Option<SendStream>,
    frame: Bytes,
) -> Result<SendStream, WriteError> {
    let mut stream = match stream {
        Some(stream) => stream,
        None => open(&connection, lane).await?,
    };
    // Frames are at most a few MiB long: `Lanes::push` checks.
    stream.write_all(&(frame.len() as u32).to_be_bytes()).await?;
    stream.write_chunk(frame).await?;
    Ok(stream)
}
