//! MQTT 3.1.1 packets to bytes and back: the server's half of the protocol.
//!
//! Lengths are checked before anything is allocated, and every rule of the standard whose breach ends a
//! connection has its own sentence in [`Malformed`].

use std::{fmt, sync::Arc};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::QoS;
use crate::eventbus::topic;

/// Says what is wrong with a packet; the connection ends by it (MQTT 3.1.1 §4.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("the packet has {length} bytes, and at most {limit} are accepted")]
    TooLong { length: usize, limit: usize },
    #[error("the remaining length has more than four bytes")]
    Length,
    #[error("the packet type {0} is not one that a client sends")]
    Type(u8),
    #[error("the reserved flags of a {0} packet are wrong")]
    Flags(&'static str),
    #[error("a {0} packet ends too early")]
    Short(&'static str),
    #[error("a {0} packet has bytes after its end")]
    Trailing(&'static str),
    #[error("a text is not valid UTF-8, or has the zero character")]
    Text,
    #[error("the topic name of a {0} packet is empty or has wildcards")]
    Topic(&'static str),
    #[error("the packet identifier of a {0} packet is zero")]
    Identifier(&'static str),
    #[error("QoS {0} is not offered")]
    QoS(u8),
    #[error("a {0} packet has no topic filter")]
    NoFilter(&'static str),
    #[error("the protocol name is not MQTT")]
    Protocol,
    #[error("the connect flags contradict each other")]
    ConnectFlags,
}

/// What a client sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Incoming {
    Connect(Connect),
    /// The id is 0 for QoS 0; `exactly_once` says QoS 2.
    Publish {
        message: Message,
        id: u16,
        exactly_once: bool,
    },
    PubAck(u16),
    PubRel(u16),
    Subscribe {
        id: u16,
        filters: Vec<(String, QoS)>,
    },
    Unsubscribe {
        id: u16,
        filters: Vec<String>,
    },
    PingReq,
    Disconnect,
}

/// What the broker sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outgoing {
    ConnAck { session_present: bool, code: u8 },
    Publish { message: Message, id: u16, duplicate: bool },
    PubAck(u16),
    PubRec(u16),
    PubComp(u16),
    SubAck { id: u16, codes: Vec<u8> },
    UnsubAck(u16),
    PingResp,
}

/// The first packet of a connection.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Connect {
    /// 4 is MQTT 3.1.1.
    pub(super) level: u8,
    pub(super) clean: bool,
    /// Seconds; zero switches the check off.
    pub(super) keep_alive: u16,
    pub(super) client: String,
    pub(super) user: Option<String>,
    pub(super) password: Option<Bytes>,
    pub(super) will: Option<Message>,
}

impl fmt::Debug for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The password stays out.
        f.debug_struct("Connect")
            .field("level", &self.level)
            .field("client", &self.client)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// A message as the broker keeps it: one allocation, however many clients get it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) topic: Arc<str>,
    pub(super) payload: Bytes,
    pub(super) qos: QoS,
    pub(super) retain: bool,
}

impl Message {
    /// What it counts in limits of memory.
    pub(super) fn size(&self) -> usize {
        self.topic.len() + self.payload.len()
    }
}

/// Takes one packet from the front of `buffer`; `None` when it is not all there yet.
pub(super) fn decode(buffer: &mut BytesMut, limit: usize) -> Result<Option<Incoming>, Malformed> {
    let Some((header, body)) = fixed_header(buffer)? else { return Ok(None) };
    if header + body > limit {
        return Err(Malformed::TooLong { length: header + body, limit });
    }
    if buffer.len() < header + body {
        return Ok(None);
    }
    let first = buffer[0];
    buffer.advance(header);
    let mut body = Body(buffer.split_to(body).freeze(), "");
    packet(first >> 4, first & 0x0f, &mut body).map(Some)
}

/// The lengths of the fixed header and of what follows, if they are known already.
fn fixed_header(buffer: &[u8]) -> Result<Option<(usize, usize)>, Malformed> {
    let mut length = 0;
    for (at, byte) in buffer.iter().skip(1).enumerate() {
        if at == 4 {
            return Err(Malformed::Length);
        }
        length |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Ok(Some((at + 2, length)));
        }
    }
    if buffer.len() > 4 { Err(Malformed::Length) } else { Ok(None) }
}

fn packet(kind: u8, flags: u8, body: &mut Body) -> Result<Incoming, Malformed> {
    let (name, expected) = match kind {
        1 => ("CONNECT", Some(0)),
        3 => ("PUBLISH", None),
        4 => ("PUBACK", Some(0)),
        6 => ("PUBREL", Some(2)),
        8 => ("SUBSCRIBE", Some(2)),
        10 => ("UNSUBSCRIBE", Some(2)),
        12 => ("PINGREQ", Some(0)),
        14 => ("DISCONNECT", Some(0)),
        // PUBREC and PUBCOMP answer messages of QoS 2, and no client is sent one.
        other => return Err(Malformed::Type(other)),
    };
    if expected.is_some_and(|expected| expected != flags) {
        return Err(Malformed::Flags(name));
    }
    body.1 = name;
    let packet = match kind {
        1 => connect(body)?,
        3 => publish(flags, body)?,
        4 => Incoming::PubAck(body.identifier()?),
        6 => Incoming::PubRel(body.identifier()?),
        8 => subscribe(body)?,
        10 => unsubscribe(body)?,
        12 => Incoming::PingReq,
        _ => Incoming::Disconnect,
    };
    if body.0.has_remaining() { Err(Malformed::Trailing(name)) } else { Ok(packet) }
}

fn connect(body: &mut Body) -> Result<Incoming, Malformed> {
    // MQIsdp is the name in MQTT 3.1; its level 3 is refused by a CONNACK that says so.
    if !["MQTT", "MQIsdp"].contains(&body.text()?.as_str()) {
        return Err(Malformed::Protocol);
    }
    let level = body.byte()?;
    if level != 4 {
        // What follows may look different; the client is told that its version is not spoken (§3.1.2.2).
        body.0.clear();
        return Ok(Incoming::Connect(Connect { level, ..Connect::default() }));
    }
    let flags = body.byte()?;
    let keep_alive = body.word()?;
    let [reserved, clean, will, retain, password, user] =
        [0x01, 0x02, 0x04, 0x20, 0x40, 0x80].map(|bit| flags & bit != 0);
    let will_qos = (flags >> 3) & 3;
    if reserved || (!will && (retain || will_qos > 0)) || (password && !user) {
        return Err(Malformed::ConnectFlags);
    }
    let client = body.text()?;
    let will = if will { Some(read_will(will_qos, retain, body)?) } else { None };
    let user = if user { Some(body.text()?) } else { None };
    let password = if password { Some(body.binary()?) } else { None };
    Ok(Incoming::Connect(Connect { level, clean, keep_alive, client, user, password, will }))
}

fn read_will(qos: u8, retain: bool, body: &mut Body) -> Result<Message, Malformed> {
    // A will of QoS 2 is sent as QoS 1, the most that a subscriber is granted.
    let qos = match qos {
        0 => QoS::AtMostOnce,
        1 | 2 => QoS::AtLeastOnce,
        other => return Err(Malformed::QoS(other)),
    };
    Ok(Message { topic: body.topic()?, payload: body.binary()?, qos, retain })
}

fn publish(flags: u8, body: &mut Body) -> Result<Incoming, Malformed> {
    // A message of QoS 2 is taken exactly once, and given to subscribers with QoS 1, the most that they are granted.
    let (qos, exactly_once) = match (flags >> 1) & 3 {
        0 => (QoS::AtMostOnce, false),
        1 => (QoS::AtLeastOnce, false),
        2 => (QoS::AtLeastOnce, true),
        other => return Err(Malformed::QoS(other)),
    };
    if flags & 0x08 != 0 && qos == QoS::AtMostOnce {
        return Err(Malformed::Flags("PUBLISH"));
    }
    let topic = body.topic()?;
    let id = if qos == QoS::AtLeastOnce { body.identifier()? } else { 0 };
    let payload = body.0.split_to(body.0.len());
    let message = Message { topic, payload, qos, retain: flags & 1 != 0 };
    Ok(Incoming::Publish { message, id, exactly_once })
}

fn subscribe(body: &mut Body) -> Result<Incoming, Malformed> {
    let id = body.identifier()?;
    let mut filters = Vec::new();
    while body.0.has_remaining() {
        let filter = body.text()?;
        filters.push((
            filter,
            match body.byte()? {
                0 => QoS::AtMostOnce,
                1 | 2 => QoS::AtLeastOnce,
                other => return Err(Malformed::QoS(other)),
            },
        ));
    }
    if filters.is_empty() {
        return Err(Malformed::NoFilter("SUBSCRIBE"));
    }
    Ok(Incoming::Subscribe { id, filters })
}

fn unsubscribe(body: &mut Body) -> Result<Incoming, Malformed> {
    let id = body.identifier()?;
    let mut filters = Vec::new();
    while body.0.has_remaining() {
        filters.push(body.text()?);
    }
    if filters.is_empty() {
        return Err(Malformed::NoFilter("UNSUBSCRIBE"));
    }
    Ok(Incoming::Unsubscribe { id, filters })
}

/// What follows the fixed header, and the packet's name for errors.
struct Body(Bytes, &'static str);

impl Body {
    fn byte(&mut self) -> Result<u8, Malformed> {
        self.0.try_get_u8().map_err(|_| Malformed::Short(self.1))
    }

    fn word(&mut self) -> Result<u16, Malformed> {
        self.0.try_get_u16().map_err(|_| Malformed::Short(self.1))
    }

    fn identifier(&mut self) -> Result<u16, Malformed> {
        match self.word()? {
            0 => Err(Malformed::Identifier(self.1)),
            id => Ok(id),
        }
    }

    fn binary(&mut self) -> Result<Bytes, Malformed> {
        let length = usize::from(self.word()?);
        if length > self.0.len() {
            return Err(Malformed::Short(self.1));
        }
        Ok(self.0.split_to(length))
    }

    fn text(&mut self) -> Result<String, Malformed> {
        let text = String::from_utf8(self.binary()?.to_vec()).map_err(|_| Malformed::Text)?;
        if text.contains('\0') { Err(Malformed::Text) } else { Ok(text) }
    }

    fn topic(&mut self) -> Result<Arc<str>, Malformed> {
        let text = self.text()?;
        if topic::is_name(&text) { Ok(text.into()) } else { Err(Malformed::Topic(self.1)) }
    }
}

/// Writes `packet` to the end of `buffer`.
pub(super) fn encode(packet: &Outgoing, buffer: &mut BytesMut) {
    match packet {
        Outgoing::ConnAck { session_present, code } => {
            buffer.put_slice(&[0x20, 2, u8::from(*session_present), *code]);
        }
        Outgoing::Publish { message, id, duplicate } => put_publish(message, *id, *duplicate, buffer),
        Outgoing::PubAck(id) => put_answer(0x40, *id, buffer),
        Outgoing::PubRec(id) => put_answer(0x50, *id, buffer),
        Outgoing::PubComp(id) => put_answer(0x70, *id, buffer),
        Outgoing::SubAck { id, codes } => {
            buffer.put_u8(0x90);
            put_length(2 + codes.len(), buffer);
            buffer.put_u16(*id);
            buffer.put_slice(codes);
        }
        Outgoing::UnsubAck(id) => put_answer(0xb0, *id, buffer),
        Outgoing::PingResp => buffer.put_slice(&[0xd0, 0]),
    }
}

fn put_answer(first: u8, id: u16, buffer: &mut BytesMut) {
    buffer.put_slice(&[first, 2]);
    buffer.put_u16(id);
}

fn put_publish(message: &Message, id: u16, duplicate: bool, buffer: &mut BytesMut) {
    let certain = message.qos == QoS::AtLeastOnce;
    let flags = u8::from(duplicate) << 3 | u8::from(certain) << 1 | u8::from(message.retain);
    buffer.put_u8(0x30 | flags);
    // A topic has at most 65535 bytes: `Message` is made of a checked topic name only.
    let topic = message.topic.as_bytes();
    put_length(2 + topic.len() + usize::from(certain) * 2 + message.payload.len(), buffer);
    buffer.put_u16(u16::try_from(topic.len()).unwrap_or(u16::MAX));
    buffer.put_slice(topic);
    if certain {
        buffer.put_u16(id);
    }
    buffer.put_slice(&message.payload);
}

fn put_length(mut length: usize, buffer: &mut BytesMut) {
    loop {
        let low = (length & 0x7f) as u8;
        length >>= 7;
        buffer.put_u8(if length > 0 { low | 0x80 } else { low });
        if length == 0 {
            return;
        }
    }
}
