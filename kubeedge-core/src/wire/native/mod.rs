use bytes::Bytes;
use prost::Message;

use super::{Codec, WireError, link};
use crate::{hub::Frame, message::Lane};

mod decode;
mod encode;
mod limits;

/// Our own format: protobuf, see `proto/link.proto`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Native;

impl Codec for Native {
    fn encode(&self, frame: &Frame) -> Bytes {
        encode::frame(frame).encode_to_vec().into()
    }

    fn encode_with_clock(&self, frame: &Frame, clock_ms: u64) -> Bytes {
        let frame = link::Frame { clock_ms: Some(clock_ms), ..encode::frame(frame) };
        frame.encode_to_vec().into()
    }

    fn clock(&self, bytes: &Bytes) -> Option<u64> {
        limits::check(bytes).ok()?;
        link::Frame::decode(bytes.clone()).ok()?.clock_ms
    }

    fn decode(&self, lane: Lane, bytes: &Bytes) -> Result<Frame, WireError> {
        limits::check(bytes)?;
        // A clone of `Bytes` shares the memory, and prost slices bodies out of it.
        let read = link::Frame::decode(bytes.clone())
            .map_err(|error| WireError::Malformed { lane, why: error.to_string() })?;
        let frame = decode::frame(read, lane)?;
        let belongs = frame.lane();
        if belongs != lane {
            return Err(WireError::WrongLane { frame: frame.name(), belongs, lane });
        }
        Ok(frame)
    }
}
