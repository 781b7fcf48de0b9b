//! Makes the `:authority` of HTTP/2 requests one that the HTTP library takes.
//!
//! A gRPC client that dials a unix socket by its bare path sends that path, percent-encoded, as `:authority`:
//! grpc-go, which KubeEdge's mappers are built on, does, and so do the clients of most other languages. RFC 9113
//! §8.3.1 asks for a host there, and the HTTP library resets the stream. On a unix socket the authority
//! says nothing, so its bytes are overwritten before the library sees them.
//!
//! What makes this simple is that the text keeps its length. Each byte is looked at once and passed on in its
//! place: nothing is gathered, so nothing can grow, and it does not matter where a read ends. The Huffman
//! bit of the value (RFC 7541 §5.2) is cleared, since its bytes become plain letters. The value that the decoder
//! keeps in its dynamic table is then at most as long as the one that the encoder keeps, so that the decoder
//! still has every entry that the encoder refers to, under the same index.

use std::collections::VecDeque;

/// Follows one direction of a connection, from client to server.
#[derive(Debug, Default)]
pub(super) struct AuthorityFilter {
    place: Place,
    fields: Fields,
}

/// Where in the stream of frames the next byte is (RFC 9113 §3.4, §4.1).
#[derive(Debug)]
enum Place {
    /// In the client's preface; ends with its last byte.
    Preface(usize),
    /// In the head of a frame; ends with its ninth byte.
    Head { head: [u8; 9], filled: usize },
    /// In bytes that do not matter; ends when none is left.
    Skip { left: u32 },
    /// Before the fields of a HEADERS frame; ends with the padding's length and the priority, if there are any.
    Lead { padded: bool, priority: u32, left: u32, padding: u32, ends: bool },
    /// In encoded fields; ends when none is left, and then comes padding.
    Block { left: u32, padding: u32, ends: bool },
    /// In what is no HTTP/2, or broken: the server will see that too. It never ends.
    Foreign,
}

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

impl Default for Place {
    fn default() -> Self {
        Self::Preface(0)
    }
}

impl AuthorityFilter {
    /// Takes the next bytes of the stream, and changes those of an `:authority`.
    pub(super) fn filter(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let taken = self.step(bytes);
            bytes = &mut bytes[taken..];
        }
    }

    /// Takes at least one byte of a slice that has one, and says how many.
    fn step(&mut self, bytes: &mut [u8]) -> usize {
        let (next, taken) = match &mut self.place {
            Place::Foreign => return bytes.len(),
            Place::Preface(at) => {
                *at += 1;
                let next = match PREFACE.get(*at - 1) {
                    Some(expected) if *expected == bytes[0] => (*at == PREFACE.len()).then(head),
                    Some(_) | None => Some(Place::Foreign),
                };
                (next, 1)
            }
            Place::Head { head, filled } => {
                head[*filled] = bytes[0];
                *filled += 1;
                let next = (*filled == head.len()).then(|| begin(*head));
                (next, 1)
            }
            Place::Skip { left } => {
                let taken = at_most(*left, bytes.len());
                *left -= count(taken);
                ((*left == 0).then(head), taken)
            }
            Place::Lead { padded, priority, left, padding, ends } => {
                *left -= 1;
                if *padded {
                    *padded = false;
                    *padding = u32::from(bytes[0]);
                } else {
                    *priority -= 1;
                }
                let next = (*priority == 0).then(|| lead_ends(*left, *padding, *ends));
                (next, 1)
            }
            Place::Block { left, padding, ends } => {
                let taken = at_most(*left, bytes.len());
                bytes[..taken].iter_mut().for_each(|byte| self.fields.take(byte));
                *left -= count(taken);
                ((*left == 0).then_some(Place::Block { left: 0, padding: *padding, ends: *ends }), taken)
            }
        };
        if let Some(next) = next {
            self.place = self.settle(next);
        }
        taken
    }

    /// Passes through places that have no byte.
    fn settle(&mut self, mut place: Place) -> Place {
        loop {
            place = match place {
                Place::Block { left: 0, padding, ends } => {
                    if ends {
                        self.fields.end();
                    }
                    Place::Skip { left: padding }
                }
                Place::Skip { left: 0 } => head(),
                Place::Preface(_)
                | Place::Head { .. }
                | Place::Skip { .. }
                | Place::Lead { .. }
                | Place::Block { .. }
                | Place::Foreign => return place,
            };
        }
    }
}

fn head() -> Place {
    Place::Head { head: [0; 9], filled: 0 }
}

/// Begins the payload of a frame.
fn begin(head: [u8; 9]) -> Place {
    let [a, b, c, kind, flags, ..] = head;
    let left = u32::from_be_bytes([0, a, b, c]);
    let ends = flags & END_HEADERS != 0;
    match kind {
        HEADERS => {
            let padded = flags & PADDED != 0;
            let priority = if flags & PRIORITY != 0 { 5 } else { 0 };
            let lead = u32::from(padded) + priority;
            match lead {
                0 => Place::Block { left, padding: 0, ends },
                lead if lead > left => Place::Foreign,
                _ => Place::Lead { padded, priority, left, padding: 0, ends },
            }
        }
        CONTINUATION => Place::Block { left, padding: 0, ends },
        _ => Place::Skip { left },
    }
}

fn lead_ends(left: u32, padding: u32, ends: bool) -> Place {
    match left.checked_sub(padding) {
        Some(left) => Place::Block { left, padding, ends },
        None => Place::Foreign,
    }
}

fn at_most(left: u32, have: usize) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(have)
}

/// Counts bytes of which there are at most as many as a frame has: its length has 24 bits.
fn count(taken: usize) -> u32 {
    u32::try_from(taken).unwrap_or(u32::MAX)
}

/// Follows encoded fields (RFC 7541 §6), across the frames and requests of a connection.
#[derive(Debug, Default)]
struct Fields {
    at: At,
    /// Which entries of the dynamic table have the name `:authority`, the newest first.
    ///
    /// It may have more entries than the encoder's table, which drops its oldest by their lengths. So an index that
    /// the encoder uses means the same entry here.
    names: VecDeque<bool>,
}

/// 128: a table has 4,096 bytes unless the server offers more, and an entry takes at least 32 (RFC 7541 §4.1).
const ENTRIES_MAX: usize = 128;

/// The number of entries of the static table, before which the dynamic one has none (RFC 7541 §2.3.3).
const STATIC_ENTRIES: u32 = 61;

const AUTHORITY: &[u8] = b":authority";
/// The same in the Huffman code of RFC 7541, Appendix B.
const AUTHORITY_HUFFMAN: &[u8] = &[0xb8, 0x3b, 0x53, 0x39, 0xec, 0x32, 0x7d, 0x7f];

/// What the next byte is.
#[derive(Debug, Clone, Copy, Default)]
enum At {
    /// The first of a field.
    #[default]
    Field,
    /// A further one of a number.
    Number { what: Number, value: u32, shift: u32 },
    /// The first of the length of a name.
    NameLength { adds: bool },
    /// One of a name, of which the first `matched` are those of `:authority`, unless it has become another name.
    Name { adds: bool, left: u32, huffman: bool, matched: Option<usize> },
    /// The first of the length of a value.
    ValueLength { authority: bool },
    /// One of a value.
    Value { left: u32, authority: bool },
    /// Nobody can know: a number was too large. The server will say so.
    Lost,
}

/// What a number means.
#[derive(Debug, Clone, Copy)]
enum Number {
    /// Something that changes nothing here: a whole field, or the size of the table.
    Other,
    /// The index of a name; zero is a name that follows. Whether the field enters the table.
    NameIndex {
        adds: bool,
    },
    NameLength {
        adds: bool,
        huffman: bool,
    },
    ValueLength {
        authority: bool,
    },
}

impl Fields {
    /// The fields of a request have ended.
    fn end(&mut self) {
        if !matches!(self.at, At::Lost) {
            self.at = At::Field;
        }
    }

    fn take(&mut self, byte: &mut u8) {
        self.at = match self.at {
            At::Lost => At::Lost,
            At::Field => self.field(*byte),
            At::Number { what, value, shift } => self.number(what, value, shift, *byte),
            At::NameLength { adds } => {
                let huffman = *byte & 0x80 != 0;
                self.begin_number(Number::NameLength { adds, huffman }, *byte, 0x7f)
            }
            At::Name { adds, left, huffman, matched } => {
                let name = if huffman { AUTHORITY_HUFFMAN } else { AUTHORITY };
                let matched =
                    matched.filter(|matched| name.get(*matched) == Some(byte)).map(|matched| matched + 1);
                match left {
                    1 => self.named(adds, matched == Some(name.len())),
                    left => At::Name { adds, left: left - 1, huffman, matched },
                }
            }
            At::ValueLength { authority } => {
                if authority {
                    *byte &= 0x7f;
                }
                self.begin_number(Number::ValueLength { authority }, *byte, 0x7f)
            }
            At::Value { left, authority } => {
                if authority {
                    *byte = b'a';
                }
                if left == 1 { At::Field } else { At::Value { left: left - 1, authority } }
            }
        };
    }

    fn field(&mut self, byte: u8) -> At {
        match byte {
            // Indexed (RFC 7541 §6.1).
            0x80.. => self.begin_number(Number::Other, byte, 0x7f),
            // Literal, entering the table (§6.2.1).
            0x40.. => self.begin_number(Number::NameIndex { adds: true }, byte, 0x3f),
            // The size of the table (§6.3).
            0x20.. => self.begin_number(Number::Other, byte, 0x1f),
            // Literal, not entering the table (§6.2.2, §6.2.3).
            _ => self.begin_number(Number::NameIndex { adds: false }, byte, 0x0f),
        }
    }

    /// The first byte of a number with a prefix (RFC 7541 §5.1).
    fn begin_number(&mut self, what: Number, byte: u8, mask: u8) -> At {
        let value = u32::from(byte & mask);
        if value == u32::from(mask) { At::Number { what, value, shift: 0 } } else { self.know(what, value) }
    }

    fn number(&mut self, what: Number, value: u32, shift: u32, byte: u8) -> At {
        let value = u32::from(byte & 0x7f).checked_shl(shift).and_then(|more| value.checked_add(more));
        match value {
            // Three further bytes reach beyond what a frame can have.
            Some(value) if shift <= 21 => match byte & 0x80 {
                0 => self.know(what, value),
                _ => At::Number { what, value, shift: shift + 7 },
            },
            Some(_) | None => At::Lost,
        }
    }

    fn know(&mut self, what: Number, value: u32) -> At {
        match (what, value) {
            (Number::Other, _) => At::Field,
            (Number::NameIndex { adds }, 0) => At::NameLength { adds },
            (Number::NameIndex { adds }, index) => {
                let authority = self.is_authority(index);
                self.named(adds, authority)
            }
            (Number::NameLength { adds, .. }, 0) => self.named(adds, false),
            (Number::NameLength { adds, huffman }, left) => {
                At::Name { adds, left, huffman, matched: Some(0) }
            }
            (Number::ValueLength { .. }, 0) => At::Field,
            (Number::ValueLength { authority }, left) => At::Value { left, authority },
        }
    }

    fn is_authority(&self, index: u32) -> bool {
        let dynamic = index.checked_sub(STATIC_ENTRIES + 1).and_then(|index| usize::try_from(index).ok());
        index == 1 || dynamic.and_then(|index| self.names.get(index)).is_some_and(|authority| *authority)
    }

    fn named(&mut self, adds: bool, authority: bool) -> At {
        if adds {
            self.names.truncate(ENTRIES_MAX - 1);
            self.names.push_front(authority);
        }
        At::ValueLength { authority }
    }
}
