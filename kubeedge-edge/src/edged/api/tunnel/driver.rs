use std::{io, time::Duration};

use kubeedge_core::pipe::Replier;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, WriteHalf, split},
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{Step, state::Tunnel};

/// How much is read at once.
const READ: usize = 16 << 10;

/// Does the steps of one connection, whose other end somebody serves, until it is over.
pub(super) async fn run(near: DuplexStream, idle: Duration, mut steps: mpsc::Receiver<Step>) {
    let mut tunnel = Tunnel::new(idle, now());
    let (mut reader, mut writer) = split(near);
    let mut buffer = vec![0; READ];
    loop {
        while let Some((from, response)) = tunnel.poll_answer() {
            Replier::answer(from, response);
        }
        if tunnel.is_over() {
            return;
        }
        let (room, rest) = (tunnel.room().min(READ), tunnel.to_write());
        tokio::select! {
            step = steps.recv() => {
                let Some(step) = step else { return };
                let (question, from) = step.split();
                tunnel.handle_step(from, question.step, now());
            }
            written = say(&mut writer, &rest), if !rest.is_empty() || tunnel.wants_shutdown() => match written {
                Ok(count) if count > 0 => tunnel.handle_written(count),
                Ok(_) | Err(_) => tunnel.handle_deaf(),
            },
            read = reader.read(&mut buffer[..room]), if room > 0 => {
                // A connection that breaks off has said all.
                tunnel.handle_read(&buffer[..read.unwrap_or_default()]);
            }
            () = sleep_until(Instant::from_std(tunnel.poll_timeout())) => tunnel.handle_timeout(now()),
        }
    }
}

/// Writes some of the bytes; if there are none, says that none will come.
async fn say(writer: &mut WriteHalf<DuplexStream>, rest: &[u8]) -> io::Result<usize> {
    if !rest.is_empty() {
        return writer.write(rest).await;
    }
    writer.shutdown().await?;
    Ok(0)
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}
