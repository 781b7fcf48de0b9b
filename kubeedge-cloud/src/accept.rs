//! Accepting connections, for the parts that serve others. No part itself.

use std::{net::SocketAddr, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, sleep_until},
};

/// The pause after a failed accept: the process may be out of file descriptors for a moment.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Accepts connections and serves them, at most so many at once and all in this one future; further ones wait to be
/// accepted. It never ends: after a failure it tries again, and whoever is being served does not notice.
///
/// `what` says in the log what the connections are for.
pub(crate) async fn accept<F: Future<Output = ()>>(
    socket: &TcpListener,
    at_once: usize,
    what: &'static str,
    serve: impl Fn(TcpStream, SocketAddr) -> F,
) {
    let mut connections = FuturesUnordered::new();
    let mut again = Instant::now();
    loop {
        let room = connections.len() < at_once.max(1);
        let accepted = async {
            sleep_until(again).await;
            socket.accept().await
        };
        tokio::select! {
            Some(()) = connections.next() => {}
            accepted = accepted, if room => match accepted {
                Ok((stream, from)) => connections.push(serve(stream, from)),
                Err(error) => {
                    tracing::warn!(%error, what, "a connection cannot be accepted");
                    again = Instant::now() + ACCEPT_AGAIN;
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        time::timeout,
    };

    use super::*;

    async fn echo(mut stream: TcpStream) {
        let mut byte = [0];
        while let Ok(1) = stream.read(&mut byte).await {
            let _ = stream.write_all(&byte).await;
        }
    }

    #[tokio::test]
    async fn so_many_are_served_at_once_and_the_next_when_one_of_them_is_gone() {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move { accept(&socket, 2, "a test", |stream, _| echo(stream)).await });
        let answers = async |stream: &mut TcpStream, patience| {
            let mut byte = [0];
            timeout(Duration::from_millis(patience), stream.read_exact(&mut byte)).await.is_ok()
        };
        let mut streams = Vec::new();
        for _ in 0..3 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"x").await.unwrap();
            streams.push(stream);
        }
        assert!(answers(&mut streams[0], 10_000).await && answers(&mut streams[1], 10_000).await);
        assert!(!answers(&mut streams[2], 100).await, "there is no room for a third");
        drop(streams.remove(0));
        assert!(answers(&mut streams[1], 10_000).await);
    }
}
