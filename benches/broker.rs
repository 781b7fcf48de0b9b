//! Claim: the embedded MQTT broker carries 50,000 messages of QoS 1 a second on one core, from one client to another.
//!
//! Workload: a client publishes messages of 100 bytes as fast as the broker takes them, a second one has subscribed and
//! acknowledges each; a message counts when it has arrived there and its publisher has been told. The broker has one thread.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kubeedge_edge::eventbus::broker::{Broker, Config};
use tokio_util::sync::CancellationToken;

/// Messages in one measurement.
const MESSAGES: usize = 20_000;
const PAYLOAD: usize = 100;
const TOPIC: &[u8] = b"room/temperature";

fn connect(address: SocketAddr, name: &str) -> TcpStream {
    let mut socket = TcpStream::connect(address).expect("the broker listens");
    socket.set_nodelay(true).expect("it is a TCP socket");
    let length = u8::try_from(12 + name.len()).expect("it is a short name");
    let mut packet = [&[0x10, length, 0, 4], &b"MQTT"[..], &[4, 2, 0, 0, 0, length - 12]].concat();
    packet.extend_from_slice(name.as_bytes());
    socket.write_all(&packet).expect("the broker reads");
    read(&mut socket, 4);
    socket
}

fn read(socket: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    socket.read_exact(&mut bytes).expect("the broker answers");
    bytes
}

/// The length of a PUBLISH of the workload.
const PACKET: usize =
    1 + 2 + 2 + TOPIC.len() + 2 + PAYLOAD - if 2 + TOPIC.len() + 2 + PAYLOAD < 128 { 1 } else { 0 };

/// A PUBLISH of QoS 1 with this packet identifier.
fn publish(id: u16) -> Vec<u8> {
    let rest = 2 + TOPIC.len() + 2 + PAYLOAD;
    let mut packet = vec![0x32];
    if rest < 128 {
        packet.push(rest as u8);
    } else {
        packet.extend_from_slice(&[(rest & 0x7f) as u8 | 0x80, (rest >> 7) as u8]);
    }
    packet.extend_from_slice(&[0, TOPIC.len() as u8]);
    packet.extend_from_slice(TOPIC);
    packet.extend_from_slice(&id.to_be_bytes());
    packet.extend_from_slice(&[b'x'; PAYLOAD]);
    packet
}

/// Sends all messages, and takes their acknowledgements.
fn write_all(socket: &TcpStream) {
    let mut acknowledgements = socket.try_clone().expect("a socket can be cloned");
    let reader = thread::spawn(move || read(&mut acknowledgements, 4 * MESSAGES).len());
    let mut socket = socket;
    let mut batch = Vec::new();
    for number in 0..MESSAGES {
        batch.extend_from_slice(&publish((number % 60_000) as u16 + 1));
        if batch.len() > 32 << 10 {
            socket.write_all(&batch).expect("the broker reads");
            batch.clear();
        }
    }
    socket.write_all(&batch).expect("the broker reads");
    reader.join().expect("all acknowledgements come");
}

/// Takes all messages, and acknowledges each.
fn read_all(mut socket: &TcpStream) {
    let (mut buffer, mut received) = (Vec::new(), 0);
    let mut chunk = vec![0; 64 << 10];
    while received < MESSAGES {
        let read = socket.read(&mut chunk).expect("the broker sends");
        assert!(read > 0, "the broker ended the connection");
        buffer.extend_from_slice(&chunk[..read]);
        let whole = buffer.len() / PACKET;
        let mut answers = Vec::with_capacity(4 * whole);
        for packet in buffer.chunks_exact(PACKET) {
            let id = PACKET - PAYLOAD - 2;
            answers.extend_from_slice(&[0x40, 2, packet[id], packet[id + 1]]);
        }
        buffer.drain(..whole * PACKET);
        received += whole;
        socket.write_all(&answers).expect("the broker reads");
    }
}

fn one_to_one(criterion: &mut Criterion) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    listener.set_nonblocking(true).expect("it is a TCP socket");
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let broker = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime starts").block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("it does not block");
            let broker = Broker::new(Config::default());
            broker.run(listener, stopped).await;
            assert_eq!(broker.stats().dropped, 0, "messages were dropped");
        });
    });
    let (writer, mut reader) = (connect(address, "writer"), connect(address, "reader"));
    let filter = [&[0x82, 5 + TOPIC.len() as u8, 0, 1, 0, TOPIC.len() as u8], TOPIC, &[1]].concat();
    reader.write_all(&filter).expect("the broker reads");
    read(&mut reader, 5);
    let mut group = criterion.benchmark_group("broker");
    group
        .throughput(Throughput::Elements(MESSAGES as u64))
        .sample_size(10)
        .measurement_time(Duration::from_secs(5));
    group.bench_function("qos_1_one_to_one", |bencher| {
        bencher.iter(|| {
            thread::scope(|scope| {
                scope.spawn(|| read_all(&reader));
                write_all(&writer);
            });
        });
    });
    group.finish();
    stop.cancel();
    broker.join().expect("the broker drops nothing");
}

criterion_group!(benches, one_to_one);
criterion_main!(benches);
