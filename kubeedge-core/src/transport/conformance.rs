//! What every transport must do, as a suite that its author runs.
//!
//! ```
//! # use kubeedge_core::transport::{conformance, memory};
//! # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
//! conformance::run(|| async {
//!     let (network, listener) = memory::network();
//!     (network.transport("edge-1".parse().unwrap()), listener)
//! })
//! .await;
//! # });
//! ```
//!
//! Each function checks one sentence of the contract in [`transport`](super) and can be run alone. They panic with
//! the sentence that does not hold. Nothing is asserted about speed; a wait of [`PATIENCE`] counts as never.

use std::{future::Future, pin::pin, time::Duration};

use bytes::Bytes;
use tokio::time::{sleep, timeout};

use super::{Connection, Listener, Peer, Transport, TransportError};
use crate::message::Lane;

/// How long anything may take before the suite says that it does not happen.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How long a send must wait until the suite says that its lane is full.
const FULL: Duration = Duration::from_millis(500);

/// The size of the frames that fill a lane.
const BIG: usize = 1 << 20;

/// No transport of ours needs to take more than this many [`BIG`] frames that nobody receives.
const BIG_FRAMES_MAX: usize = 64;

/// Runs the whole suite; `make` gives a fresh transport and the listener that it dials, for each check.
///
/// # Panics
/// If a sentence of the contract does not hold.
pub async fn run<F, Made, T, L>(make: F)
where
    F: Fn() -> Made,
    Made: Future<Output = (T, L)>,
    T: Transport,
    L: Listener,
{
    macro_rules! check {
        ($($check:ident),* $(,)?) => {$(
            let (transport, listener) = make().await;
            $check(&transport, &listener).await;
        )*};
    }
    check!(
        peers_are_who_their_certificates_say,
        frames_of_a_lane_arrive_in_order,
        frames_arrive_whole_up_to_the_limit,
        a_frame_that_is_too_long_is_refused_and_the_connection_lives,
        a_full_lane_holds_up_no_other,
        a_dropped_send_sends_nothing_in_part,
        receiving_is_cancel_safe,
        accepting_is_cancel_safe,
        closing_delivers_what_was_sent_and_the_reason,
        dropping_closes,
        a_dropped_connect_leaves_nothing_behind,
        connections_are_independent,
    );
}

type Connected = (Box<dyn Connection>, Box<dyn Connection>);

/// Opens a connection: the edge's end, and the cloud's.
async fn open(transport: &dyn Transport, listener: &dyn Listener) -> Connected {
    let (edge, cloud) =
        soon("connecting", async { tokio::join!(transport.connect(), listener.accept()) }).await;
    (edge.expect("the edge connects"), cloud.expect("the cloud accepts"))
}

async fn soon<T>(what: &str, happens: impl Future<Output = T>) -> T {
    match timeout(PATIENCE, happens).await {
        Ok(happened) => happened,
        Err(_) => panic!("{what} does not happen within {PATIENCE:?}"),
    }
}

async fn receive(connection: &dyn Connection) -> (Lane, Bytes) {
    let received = soon("receiving a frame", connection.recv()).await;
    received.expect("a frame is received").expect("the connection is open")
}

/// A frame whose bytes tell its place, so that mixed-up parts show.
fn frame(number: usize, length: usize) -> Bytes {
    (0..length).map(|at| (number.wrapping_mul(31) ^ at ^ (at >> 8)) as u8).collect()
}

/// `peer` is the identity that was proven, and `path` and `name` say something.
pub async fn peers_are_who_their_certificates_say(transport: &dyn Transport, listener: &dyn Listener) {
    let (edge, cloud) = open(transport, listener).await;
    assert_eq!(edge.peer(), &Peer::Cloud, "the edge talks to the cloud");
    assert!(matches!(cloud.peer(), Peer::Node(_)), "the cloud talks to a node, not to {:?}", cloud.peer());
    let (_edge, again) = open(transport, listener).await;
    assert_eq!(cloud.peer(), again.peer(), "the same transport is the same node each time");
    assert!(!edge.path().is_empty() && !cloud.path().is_empty(), "a path says how the peer is reached");
    assert!(!transport.name().is_empty(), "a transport has a name");
    assert!(!listener.local_address().is_empty(), "a listener has an address");
}

/// Frames of one lane arrive in order, in both directions, whatever goes on in the others.
pub async fn frames_of_a_lane_arrive_in_order(transport: &dyn Transport, listener: &dyn Listener) {
    const ROUNDS: usize = 100;
    let (edge, cloud) = open(transport, listener).await;
    let send = async |end: &dyn Connection| {
        for round in 0..ROUNDS {
            for lane in Lane::ALL {
                end.send(lane, frame(round, 1 + round * 7)).await.expect("a frame is sent");
            }
        }
    };
    let receive_all = async |end: &dyn Connection| {
        let mut next = [0; Lane::ALL.len()];
        for _ in 0..ROUNDS * Lane::ALL.len() {
            let (lane, bytes) = receive(end).await;
            let round = &mut next[lane.index()];
            assert_eq!(bytes, frame(*round, 1 + *round * 7), "frame {round} of lane {lane:?} is the next");
            *round += 1;
        }
    };
    let all = async { tokio::join!(send(&*edge), send(&*cloud), receive_all(&*edge), receive_all(&*cloud)) };
    soon("exchanging small frames", all).await;
}

/// Frames arrive whole, from the empty one to the lane's limit.
pub async fn frames_arrive_whole_up_to_the_limit(transport: &dyn Transport, listener: &dyn Listener) {
    let (edge, cloud) = open(transport, listener).await;
    for (from, to) in [(&edge, &cloud), (&cloud, &edge)] {
        for lane in Lane::ALL {
            for length in [0, 1, 16_384, 16_385, lane.frame_limit()] {
                let sent = frame(length, length);
                let (result, received) = tokio::join!(from.send(lane, sent.clone()), receive(&**to));
                result.expect("a frame within the limit is sent");
                assert_eq!(received.0, lane, "a frame arrives on its lane");
                assert!(received.1 == sent, "{length} bytes on {lane:?} arrive as they were sent");
            }
        }
    }
}

/// A frame over its lane's limit is refused with `TooLong`, nothing is sent, and the connection lives on.
pub async fn a_frame_that_is_too_long_is_refused_and_the_connection_lives(
    transport: &dyn Transport,
    listener: &dyn Listener,
) {
    let (edge, cloud) = open(transport, listener).await;
    for lane in Lane::ALL {
        let refused = soon("refusing", edge.send(lane, frame(0, lane.frame_limit() + 1))).await;
        assert!(matches!(refused, Err(TransportError::TooLong { .. })), "{lane:?} refuses: {refused:?}");
        edge.send(lane, frame(1, 10)).await.expect("the connection lives on");
        assert_eq!(receive(&*cloud).await, (lane, frame(1, 10)), "nothing of the long frame was sent");
    }
}

/// `send` waits while its lane is full, and holds up no other lane meanwhile; an urgent frame overtakes. Either end may be
/// the one that sends.
pub async fn a_full_lane_holds_up_no_other(transport: &dyn Transport, listener: &dyn Listener) {
    for edge_sends in [true, false] {
        let (edge, cloud) = open(transport, listener).await;
        let (from, to) = if edge_sends { (edge, cloud) } else { (cloud, edge) };
        let mut taken = 0;
        let mut waiting = loop {
            assert!(taken < BIG_FRAMES_MAX, "a lane that nobody reads takes frames without bound");
            let mut send = Box::pin(from.send(Lane::Bulk, frame(taken, BIG)));
            match timeout(FULL, &mut send).await {
                Ok(sent) => sent.expect("a frame is sent"),
                Err(_) => break send,
            }
            taken += 1;
        };
        for lane in [Lane::Heartbeat, Lane::Pods] {
            let sent = soon("sending on another lane", from.send(lane, frame(0, 10))).await;
            sent.expect("the other lane goes on");
        }
        let drain = async {
            let (mut order, mut bulk) = (Vec::new(), 0);
            while order.len() < taken + 3 {
                let (lane, bytes) = receive(&*to).await;
                if lane == Lane::Bulk {
                    assert!(bytes == frame(bulk, BIG), "big frame {bulk} arrives whole and in order");
                    bulk += 1;
                }
                order.push(lane);
            }
            order
        };
        let (sent, order) = soon("draining", async { tokio::join!(&mut waiting, drain) }).await;
        sent.expect("the waiting frame is sent once there is room");
        assert_eq!(
            order.last(),
            Some(&Lane::Bulk),
            "urgent frames arrive before the big one that had to wait"
        );
    }
}

/// A frame whose `send` was dropped is sent whole, not at all, or the connection is broken.
pub async fn a_dropped_send_sends_nothing_in_part(transport: &dyn Transport, listener: &dyn Listener) {
    let (edge, cloud) = open(transport, listener).await;
    let mut taken = 0;
    while let Ok(sent) = timeout(FULL, edge.send(Lane::Bulk, frame(taken, BIG))).await {
        sent.expect("a frame is sent");
        taken += 1;
        assert!(taken < BIG_FRAMES_MAX, "a lane that nobody reads takes frames without bound");
    }
    let mut last = pin!(edge.send(Lane::Bulk, frame(usize::MAX, 3)));
    let receive_all = async {
        for number in 0.. {
            let Ok(Some((_, bytes))) = cloud.recv().await else { return };
            if bytes == frame(usize::MAX, 3) {
                assert!(number >= taken, "frames that were taken arrive");
                return;
            }
            assert!(number <= taken && bytes == frame(number, BIG), "frame {number} is whole and in order");
        }
    };
    let both = async {
        tokio::join!(
            async {
                // An error is allowed: the connection may be broken.
                drop((&mut last).await);
            },
            receive_all
        )
    };
    soon("receiving what was sent", both).await;
}

/// `recv` can be dropped at any time without losing a frame or a part of one.
pub async fn receiving_is_cancel_safe(transport: &dyn Transport, listener: &dyn Listener) {
    const FRAMES: usize = 40;
    let (edge, cloud) = open(transport, listener).await;
    let send = async {
        for number in 0..FRAMES {
            edge.send(Lane::Pods, frame(number, number * 5_000)).await.expect("a frame is sent");
            sleep(Duration::from_micros(300)).await;
        }
    };
    let receive = async {
        let mut number = 0;
        while number < FRAMES {
            // Polled once and dropped, then given a moment: it is cut short at every stage.
            let once = tokio::select! {
                biased;
                received = cloud.recv() => Some(received),
                () = tokio::task::yield_now() => None,
            };
            if let Some(received) = once {
                let (lane, bytes) = received.expect("a frame is received").expect("the connection is open");
                assert_eq!(lane, Lane::Pods, "a frame arrives on its lane");
                assert!(bytes == frame(number, number * 5_000), "frame {number} arrives whole and in order");
                number += 1;
            } else {
                sleep(Duration::from_micros(100)).await;
            }
        }
    };
    soon("receiving in short pieces", async { tokio::join!(send, receive) }).await;
}

/// `accept` can be dropped at any time without losing a connection.
pub async fn accepting_is_cancel_safe(transport: &dyn Transport, listener: &dyn Listener) {
    let accept = async {
        loop {
            if let Ok(accepted) = timeout(Duration::from_millis(1), listener.accept()).await {
                break accepted.expect("the cloud accepts");
            }
        }
    };
    let (edge, cloud) =
        soon("accepting in short pieces", async { tokio::join!(transport.connect(), accept) }).await;
    let edge = edge.expect("the edge connects");
    edge.send(Lane::Pods, frame(1, 10)).await.expect("a frame is sent");
    assert_eq!(receive(&*cloud).await, (Lane::Pods, frame(1, 10)), "the accepted connection works");
}

/// `close` delivers what `send` took; then the peer receives `None`, and its sends name the reason.
pub async fn closing_delivers_what_was_sent_and_the_reason(
    transport: &dyn Transport,
    listener: &dyn Listener,
) {
    for edge_closes in [true, false] {
        let (edge, cloud) = open(transport, listener).await;
        let (closer, other) = if edge_closes { (edge, cloud) } else { (cloud, edge) };
        for lane in Lane::ALL {
            closer.send(lane, frame(0, 1000)).await.expect("a frame is sent");
        }
        let receive = async {
            let mut received = 0;
            while let Some(_frame) = other.recv().await.expect("the connection ends in order") {
                received += 1;
            }
            assert_eq!(received, Lane::ALL.len(), "what was sent before the close arrives");
        };
        let close = closer.close("the node is switched off");
        soon("closing", async { tokio::join!(close, receive) }).await;
        let again = soon("receiving after the end", other.recv()).await;
        assert!(matches!(again, Ok(None)), "it stays ended: {again:?}");
        let error = soon("sending after the end", other.send(Lane::Pods, frame(0, 1))).await;
        let error = error.expect_err("nothing is sent on a closed connection");
        assert!(matches!(error, TransportError::Closed(_)), "{error:?} says that the connection is over");
        assert!(error.to_string().contains("the node is switched off"), "{error} names the peer's reason");

        let own = soon("sending after closing", closer.send(Lane::Pods, frame(0, 1))).await;
        assert!(own.is_err(), "nothing is sent after closing");
        let own = soon("receiving after closing", closer.recv()).await;
        assert!(!matches!(own, Ok(Some(_))), "nothing is received after closing");
        soon("closing twice", closer.close("again")).await;
    }
}

/// Dropping a connection closes it: the peer's `recv` ends.
pub async fn dropping_closes(transport: &dyn Transport, listener: &dyn Listener) {
    for edge_drops in [true, false] {
        let (edge, cloud) = open(transport, listener).await;
        let (dropped, other) = if edge_drops { (edge, cloud) } else { (cloud, edge) };
        drop(dropped);
        let ended = soon("learning of the drop", other.recv()).await;
        assert!(!matches!(ended, Ok(Some(_))), "nothing follows a drop: {ended:?}");
        let send = async { while other.send(Lane::Pods, frame(0, 1)).await.is_ok() {} };
        soon("a send that fails", send).await;
    }
}

/// Dropping `connect` gives up and leaves nothing behind that would hinder the next attempt.
pub async fn a_dropped_connect_leaves_nothing_behind(transport: &dyn Transport, listener: &dyn Listener) {
    for _ in 0..3 {
        drop(timeout(Duration::from_micros(200), transport.connect()).await);
    }
    let accept = async {
        loop {
            let cloud = listener.accept().await.expect("the cloud accepts");
            // A connection that the edge gave up may show up here; it ends by itself.
            if let Ok(Some(received)) = cloud.recv().await {
                break received;
            }
        }
    };
    let connect = async {
        let edge = transport.connect().await.expect("the edge connects");
        edge.send(Lane::Pods, frame(1, 10)).await.expect("a frame is sent");
        edge
    };
    let (_edge, received) = soon("connecting after giving up", async { tokio::join!(connect, accept) }).await;
    assert_eq!(received, (Lane::Pods, frame(1, 10)), "the next connection works");
}

/// Connections of one transport know nothing of each other.
pub async fn connections_are_independent(transport: &dyn Transport, listener: &dyn Listener) {
    let (first_edge, first_cloud) = open(transport, listener).await;
    let (second_edge, second_cloud) = open(transport, listener).await;
    first_edge.send(Lane::Pods, frame(1, 10)).await.expect("a frame is sent");
    second_edge.send(Lane::Pods, frame(2, 10)).await.expect("a frame is sent");
    assert_eq!(receive(&*second_cloud).await.1, frame(2, 10), "a frame arrives on its own connection");
    assert_eq!(receive(&*first_cloud).await.1, frame(1, 10), "a frame arrives on its own connection");
    let close = first_edge.close("one is enough");
    soon("closing one", async { tokio::join!(close, first_cloud.recv()) }).await.1.expect("it ends in order");
    second_cloud.send(Lane::Pods, frame(3, 10)).await.expect("the other connection goes on");
    assert_eq!(receive(&*second_edge).await.1, frame(3, 10), "the other connection goes on");
}
