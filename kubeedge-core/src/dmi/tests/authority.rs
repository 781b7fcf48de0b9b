//! Requests as grpc clients of other languages send them, read by a real HTTP/2 server behind the filter.

use std::collections::VecDeque;

use proptest::{collection::vec, prelude::*, sample::Index};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::authority::AuthorityFilter;

/// A field to be sent, and the encoder's choices for it.
#[derive(Debug, Clone)]
struct Field {
    name: String,
    value: String,
    /// Taken from the table if it is there.
    by_index: bool,
    /// Whether its name is taken from a table if it is there.
    name_by_index: bool,
    /// 0: entering the table, 1: not, 2: never.
    indexing: u8,
    huffman: (bool, bool),
}

/// How the frames of one request are made.
#[derive(Debug, Clone)]
struct Shape {
    padding: Option<u8>,
    priority: bool,
    /// Where the block is cut into CONTINUATION frames.
    cuts: Vec<Index>,
    /// The table's size is announced anew.
    resize: Option<u32>,
}

/// An encoder with a dynamic table of RFC 7541 §4, as a client has it.
struct Encoder {
    table: VecDeque<(String, String)>,
    size_max: usize,
}

const STATIC: [(u32, &str, &str); 6] = [
    (1, ":authority", ""),
    (3, ":method", "POST"),
    (6, ":scheme", "http"),
    (4, ":path", "/"),
    (31, "content-type", ""),
    (58, "user-agent", ""),
];

impl Encoder {
    fn new() -> Self {
        Self { table: VecDeque::new(), size_max: 4_096 }
    }

    fn resize(&mut self, size: u32, out: &mut Vec<u8>) {
        number(out, 0x20, 0x1f, size);
        self.size_max = size as usize;
        self.evict(0);
    }

    fn evict(&mut self, room: usize) {
        let size = |table: &VecDeque<(String, String)>| -> usize {
            table.iter().map(|(name, value)| name.len() + value.len() + 32).sum()
        };
        while !self.table.is_empty() && size(&self.table) + room > self.size_max {
            self.table.pop_back();
        }
    }

    fn field(&mut self, field: &Field, out: &mut Vec<u8>) {
        let full = self.table.iter().position(|(name, value)| (name, value) == (&field.name, &field.value));
        let fixed = STATIC.iter().find(|(_, name, value)| *name == field.name && *value == field.value);
        match (field.by_index, full, fixed) {
            (true, Some(at), _) => return number(out, 0x80, 0x7f, 62 + at as u32),
            (true, None, Some((index, ..))) => return number(out, 0x80, 0x7f, *index),
            _ => {}
        }
        let (first, mask) = [(0x40, 0x3f), (0x00, 0x0f), (0x10, 0x0f)][usize::from(field.indexing)];
        let dynamic = self.table.iter().position(|(name, _)| *name == field.name).map(|at| 62 + at as u32);
        let fixed = STATIC.iter().find(|(_, name, _)| *name == field.name).map(|(index, ..)| *index);
        match dynamic.or(fixed).filter(|_| field.name_by_index) {
            Some(index) => number(out, first, mask, index),
            None => {
                number(out, first, mask, 0);
                string(out, &field.name, field.huffman.0);
            }
        }
        string(out, &field.value, field.huffman.1);
        if field.indexing == 0 {
            let room = field.name.len() + field.value.len() + 32;
            self.evict(room);
            if room <= self.size_max {
                self.table.push_front((field.name.clone(), field.value.clone()));
            }
        }
    }
}

fn number(out: &mut Vec<u8>, first: u8, mask: u8, value: u32) {
    if value < u32::from(mask) {
        return out.push(first | value as u8);
    }
    out.push(first | mask);
    let mut rest = value - u32::from(mask);
    while rest >= 0x80 {
        out.push(0x80 | (rest & 0x7f) as u8);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn string(out: &mut Vec<u8>, text: &str, huffman: bool) {
    let coded = huffman_of(text);
    // An encoder takes the code only where it is shorter.
    if huffman && coded.len() <= text.len() {
        number(out, 0x80, 0x7f, coded.len() as u32);
        out.extend(coded);
    } else {
        number(out, 0, 0x7f, text.len() as u32);
        out.extend(text.as_bytes());
    }
}

fn huffman_of(text: &str) -> Vec<u8> {
    let (mut bits, mut have, mut out) = (0u64, 0, Vec::new());
    for byte in text.bytes() {
        let (code, length) = code_of(byte);
        bits = (bits << length) | code;
        have += length;
        while have >= 8 {
            have -= 8;
            out.push((bits >> have) as u8);
        }
    }
    if have > 0 {
        out.push(((bits << (8 - have)) | (0xff >> have)) as u8);
    }
    out
}

/// The part of RFC 7541, Appendix B, that these tests need.
fn code_of(byte: u8) -> (u64, u32) {
    let five = b"012aceiost";
    let six = b"%-./3456789=A_bdfghlmnpru";
    let seven = b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz";
    let at = |codes: &[u8]| codes.iter().position(|code| *code == byte).map(|at| at as u64);
    if let Some(at) = at(five) {
        (at, 5)
    } else if let Some(at) = at(six) {
        (0x14 + 1 + at, 6)
    } else if let Some(at) = at(seven) {
        (0x5c + at, 7)
    } else {
        panic!("no code for {byte}")
    }
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
}

/// All bytes of a client that sends these requests.
fn client(requests: &[(Vec<Field>, Shape)]) -> Vec<u8> {
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    frame(&mut out, 4, 0, 0, &[]);
    let mut encoder = Encoder::new();
    for (index, (fields, shape)) in requests.iter().enumerate() {
        let stream = 1 + 2 * index as u32;
        let mut block = Vec::new();
        if let Some(size) = shape.resize {
            encoder.resize(size, &mut block);
        }
        fields.iter().for_each(|field| encoder.field(field, &mut block));
        let mut cuts: Vec<usize> = shape.cuts.iter().map(|cut| cut.index(block.len())).collect();
        cuts.extend([0, block.len()]);
        cuts.sort_unstable();
        let pieces = cuts.len() - 1;
        for piece in 0..pieces {
            let part = &block[cuts[piece]..cuts[piece + 1]];
            let ends = if piece + 1 == pieces { 4 } else { 0 };
            if piece > 0 {
                frame(&mut out, 9, ends, stream, part);
                continue;
            }
            let (mut payload, mut flags) = (Vec::new(), 1 | ends);
            if let Some(padding) = shape.padding {
                payload.push(padding);
                flags |= 8;
            }
            if shape.priority {
                payload.extend([0, 0, 0, 0, 7]);
                flags |= 0x20;
            }
            payload.extend(part);
            payload.extend(vec![0; usize::from(shape.padding.unwrap_or(0))]);
            frame(&mut out, 1, flags, stream, &payload);
        }
        // Something else between two requests.
        frame(&mut out, 6, 0, 0, b"\x81pinged!");
    }
    out
}

/// What a real server makes of the bytes: for each request its path and its headers, or the error.
async fn serve(
    mut bytes: Vec<u8>,
    filtered: bool,
    requests: usize,
) -> Result<Vec<(String, Vec<String>)>, h2::Error> {
    if filtered {
        AuthorityFilter::default().filter(&mut bytes);
    }
    let (mut ours, theirs) = tokio::io::duplex(1 << 20);
    ours.write_all(&bytes).await.unwrap();
    let mut server = h2::server::Builder::new().handshake::<_, bytes::Bytes>(theirs).await?;
    let mut found = Vec::new();
    while found.len() < requests {
        let Some(accepted) = server.accept().await else { break };
        let (request, mut respond) = accepted?;
        let header = |(name, value): (&_, &_)| format!("{name}: {value:?}");
        found.push((request.uri().path().to_owned(), request.headers().iter().map(header).collect()));
        respond.send_response(http::Response::new(()), true)?;
    }
    ours.shutdown().await.unwrap();
    let _ = ours.read_u8().await;
    Ok(found)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn plain(name: &str, value: &str) -> Field {
    let (name, value) = (name.to_owned(), value.to_owned());
    Field { name, value, by_index: true, name_by_index: true, indexing: 0, huffman: (true, true) }
}

fn request(authority: &str, path: &str) -> Vec<Field> {
    vec![
        plain(":method", "POST"),
        plain(":scheme", "http"),
        plain(":path", path),
        plain(":authority", authority),
        plain("content-type", "application/grpc"),
        plain("user-agent", "grpc-go/1.67.1"),
    ]
}

const WHOLE: Shape = Shape { padding: None, priority: false, cuts: Vec::new(), resize: None };

#[test]
fn a_client_that_sends_the_path_of_the_socket_as_authority_is_refused_without_the_filter_only() {
    for authority in ["%2Fetc%2Fkubeedge%2Fdmi.sock", "/etc/kubeedge/dmi.sock"] {
        let requests = [(request(authority, "/a/b"), WHOLE), (request(authority, "/c/d"), WHOLE)];
        let bytes = client(&requests);
        let runtime = runtime();
        let bare = runtime.block_on(async {
            tokio::time::timeout(std::time::Duration::from_millis(200), serve(bytes.clone(), false, 2)).await
        });
        assert!(!matches!(&bare, Ok(Ok(found)) if !found.is_empty()), "{bare:?}");
        let found = runtime.block_on(serve(bytes, true, 2)).unwrap();
        assert_eq!(found.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>(), ["/a/b", "/c/d"]);
    }
}

#[test]
fn only_the_value_of_the_authority_changes_and_no_length_does() {
    let before = client(&[(request("/tmp/x", "/a/b"), WHOLE)]);
    let mut after = before.clone();
    AuthorityFilter::default().filter(&mut after);
    let changed: Vec<usize> = (0..before.len()).filter(|at| before[*at] != after[*at]).collect();
    let (first, last) = (changed[0], *changed.last().unwrap());
    assert!(last - first <= "/tmp/x".len(), "{changed:?}");
}

#[test]
fn a_stream_that_is_no_http_2_passes_as_it_is() {
    let before = b"GET / HTTP/1.1\r\nHost: /etc/kubeedge/dmi.sock\r\n\r\n".to_vec();
    let mut after = before.clone();
    AuthorityFilter::default().filter(&mut after);
    assert_eq!(before, after);
}

fn any_field() -> impl Strategy<Value = (bool, bool, u8, (bool, bool))> {
    (any::<bool>(), any::<bool>(), 0..3u8, any::<(bool, bool)>())
}

fn any_request() -> impl Strategy<Value = (Vec<Field>, Shape)> {
    let authority = prop_oneof!["%2F[a-z]{0,40}%2Fdmi[.]sock", "/[a-z/]{1,60}", "localhost"];
    let extra = vec(("x-[a-d]{1,2}", "[a-z0-9/%]{0,30}"), 0..6);
    let shape = (
        proptest::option::of(0..20u8),
        any::<bool>(),
        vec(any::<Index>(), 0..4),
        proptest::option::of(0..4_097u32),
    );
    (authority, "/[a-z]{1,8}/[a-z]{1,8}", extra, vec(any_field(), 16), shape).prop_map(
        |(authority, path, extra, choices, (padding, priority, cuts, resize))| {
            let mut fields = request(&authority, &path);
            fields.extend(extra.iter().map(|(name, value)| plain(name, value)));
            for (field, choice) in fields.iter_mut().zip(choices) {
                (field.by_index, field.name_by_index, field.indexing, field.huffman) = choice;
            }
            (fields, Shape { padding, priority, cuts, resize })
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn a_real_server_reads_every_request_whatever_its_encoder_chose(requests in vec(any_request(), 1..8)) {
        let found = runtime().block_on(serve(client(&requests), true, requests.len())).unwrap();
        prop_assert_eq!(found.len(), requests.len());
        for ((path, headers), (fields, _)) in found.iter().zip(&requests) {
            let sent = fields.iter().find(|field| field.name == ":path").unwrap();
            prop_assert_eq!(path, &sent.value);
            for field in fields.iter().filter(|field| !field.name.starts_with(':')) {
                let sent = format!("{}: {:?}", field.name, field.value);
                prop_assert!(headers.contains(&sent), "{sent} is not among {headers:?}");
            }
        }
    }

    #[test]
    fn it_does_not_matter_where_a_read_ends(requests in vec(any_request(), 1..4), cuts in vec(any::<Index>(), 0..40)) {
        let mut whole = client(&requests);
        let mut pieces = whole.clone();
        AuthorityFilter::default().filter(&mut whole);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(pieces.len())).collect();
        cuts.extend([0, pieces.len()]);
        cuts.sort_unstable();
        let mut filter = AuthorityFilter::default();
        cuts.windows(2).for_each(|cut| filter.filter(&mut pieces[cut[0]..cut[1]]));
        prop_assert_eq!(&whole, &pieces);
        let mut bytes = client(&requests);
        let mut filter = AuthorityFilter::default();
        bytes.chunks_mut(1).for_each(|byte| filter.filter(byte));
        prop_assert_eq!(&whole, &bytes);
    }

    #[test]
    fn random_bytes_after_the_preface_never_panic_and_change_no_length(mut bytes in vec(any::<u8>(), 0..2_000), heads in vec((0..12u8, any::<u8>(), 0..300u32), 0..12)) {
        let mut stream = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        for (kind, flags, length) in heads {
            let length = (length as usize).min(bytes.len());
            frame(&mut stream, kind, flags, 1, &bytes[..length]);
            bytes.drain(..length / 2);
        }
        stream.extend(&bytes);
        let mut filter = AuthorityFilter::default();
        stream.chunks_mut(7).for_each(|chunk| filter.filter(chunk));
        AuthorityFilter::default().filter(&mut bytes);
    }
}
