//! Reads the few objects that `kubectl create` and `kubectl drain` send as protobuf whatever the server
//! prefers: ConfigMaps, Secrets, namespaces, service accounts and the options of deletions.
//!
//! Kubernetes puts four bytes before a message that says which kind follows and holds its bytes. The numbers
//! below are those of `generated.proto` in `k8s.io/api/core/v1` and `k8s.io/apimachinery`.

use serde_json::{Map, Value};

use super::failure::Failure;

/// The first bytes of every message of Kubernetes.
pub(crate) const MAGIC: &[u8] = b"k8s\0";

/// How a field becomes JSON.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Text,
    Texts,
    Bool,
    Number,
    TextMap,
    BytesMap,
    Message(Message),
    Messages(Message),
}

/// Number, name and kind of each field that is read. Others are what the server writes itself.
type Message = &'static [(u64, &'static str, Kind)];

const OBJECT_META: Message = &[
    (1, "name", Kind::Text),
    (2, "generateName", Kind::Text),
    (3, "namespace", Kind::Text),
    (5, "uid", Kind::Text),
    (6, "resourceVersion", Kind::Text),
    (11, "labels", Kind::TextMap),
    (12, "annotations", Kind::TextMap),
    (13, "ownerReferences", Kind::Messages(OWNER_REFERENCE)),
    (14, "finalizers", Kind::Texts),
];
const OWNER_REFERENCE: Message = &[
    (1, "kind", Kind::Text),
    (3, "name", Kind::Text),
    (4, "uid", Kind::Text),
    (5, "apiVersion", Kind::Text),
    (6, "controller", Kind::Bool),
    (7, "blockOwnerDeletion", Kind::Bool),
];
const CONFIG_MAP: Message = &[
    (1, "metadata", Kind::Message(OBJECT_META)),
    (2, "data", Kind::TextMap),
    (3, "binaryData", Kind::BytesMap),
    (4, "immutable", Kind::Bool),
];
const SECRET: Message = &[
    (1, "metadata", Kind::Message(OBJECT_META)),
    (2, "data", Kind::BytesMap),
    (3, "type", Kind::Text),
    (4, "stringData", Kind::TextMap),
    (5, "immutable", Kind::Bool),
];
const NAMED: Message = &[(1, "name", Kind::Text)];
const SERVICE_ACCOUNT: Message = &[
    (1, "metadata", Kind::Message(OBJECT_META)),
    (3, "imagePullSecrets", Kind::Messages(NAMED)),
    (4, "automountServiceAccountToken", Kind::Bool),
];
const NAMESPACE: Message = &[(1, "metadata", Kind::Message(OBJECT_META))];

const DELETE_OPTIONS: Message = &[
    (1, "gracePeriodSeconds", Kind::Number),
    (2, "preconditions", Kind::Message(&[(1, "uid", Kind::Text), (2, "resourceVersion", Kind::Text)])),
    (4, "propagationPolicy", Kind::Text),
    (5, "dryRun", Kind::Texts),
];

const ENVELOPE: Message = &[(1, "type", Kind::Message(TYPE_META))];
const TYPE_META: Message = &[(1, "apiVersion", Kind::Text), (2, "kind", Kind::Text)];

/// Reads an object.
///
/// # Errors
/// 400 if the body is malformed, 415 if it is of a kind that is not read.
pub(crate) fn decode(body: &[u8]) -> Result<Value, Failure> {
    let message = body.strip_prefix(MAGIC).ok_or_else(malformed)?;
    let envelope = read(message, ENVELOPE)?;
    let raw = fields(message)?.into_iter().rev().find_map(|(number, field)| match field {
        Field::Bytes(bytes) if number == 2 => Some(bytes),
        Field::Bytes(_) | Field::Number(_) => None,
    });
    let kind = envelope.pointer("/type/kind").and_then(Value::as_str).unwrap_or_default();
    let shape = match kind {
        "ConfigMap" => CONFIG_MAP,
        "Secret" => SECRET,
        "ServiceAccount" => SERVICE_ACCOUNT,
        "Namespace" => NAMESPACE,
        "DeleteOptions" => DELETE_OPTIONS,
        other => {
            let message = format!("{other:?} cannot be read as protobuf here; send it as application/json");
            return Err(Failure::unsupported_media_type(message));
        }
    };
    let mut object = read(raw.unwrap_or_default(), shape)?;
    for member in ["apiVersion", "kind"] {
        object[member] = envelope["type"][member].clone();
    }
    Ok(object)
}

fn malformed() -> Failure {
    Failure::bad_request("the body is not valid protobuf of Kubernetes")
}

enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message, in order.
fn fields(mut rest: &[u8]) -> Result<Vec<(u64, Field<'_>)>, Failure> {
    let mut fields = Vec::new();
    while !rest.is_empty() {
        let tag = varint(&mut rest)?;
        let field = match tag & 7 {
            0 => Field::Number(varint(&mut rest)?),
            1 => Field::Bytes(take(&mut rest, 8)?),
            2 => {
                let length = usize::try_from(varint(&mut rest)?).map_err(|_| malformed())?;
                Field::Bytes(take(&mut rest, length)?)
            }
            5 => Field::Bytes(take(&mut rest, 4)?),
            _ => return Err(malformed()),
        };
        fields.push((tag >> 3, field));
    }
    Ok(fields)
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], Failure> {
    let (taken, left) = rest.split_at_checked(length).ok_or_else(malformed)?;
    *rest = left;
    Ok(taken)
}

fn varint(rest: &mut &[u8]) -> Result<u64, Failure> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, left) = rest.split_first().ok_or_else(malformed)?;
        *rest = left;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(malformed())
}

fn read(message: &[u8], shape: Message) -> Result<Value, Failure> {
    let mut object = Map::new();
    for (number, field) in fields(message)? {
        let Some((_, name, kind)) = shape.iter().find(|(n, ..)| *n == number) else { continue };
        match (kind, field) {
            (Kind::Bool, Field::Number(value)) => {
                object.insert((*name).into(), (value != 0).into());
            }
            (Kind::Number, Field::Number(value)) => {
                // Negative numbers are written in two's complement.
                object.insert((*name).into(), value.cast_signed().into());
            }
            (Kind::Text, Field::Bytes(bytes)) => {
                // An empty text is what an absent one is written as.
                let text = text(bytes)?;
                if text != "" {
                    object.insert((*name).into(), text);
                }
            }
            (Kind::Message(shape), Field::Bytes(bytes)) => {
                object.insert((*name).into(), read(bytes, shape)?);
            }
            (Kind::Texts, Field::Bytes(bytes)) => push(&mut object, name, text(bytes)?),
            (Kind::Messages(shape), Field::Bytes(bytes)) => push(&mut object, name, read(bytes, shape)?),
            (Kind::TextMap, Field::Bytes(bytes)) => insert(&mut object, name, bytes, text)?,
            (Kind::BytesMap, Field::Bytes(bytes)) => insert(&mut object, name, bytes, base64)?,
            _ => return Err(malformed()),
        }
    }
    Ok(Value::Object(object))
}

fn push(object: &mut Map<String, Value>, name: &str, item: Value) {
    let list = object.entry(name).or_insert_with(|| Value::Array(Vec::new()));
    if let Some(list) = list.as_array_mut() {
        list.push(item);
    }
}

fn insert(
    object: &mut Map<String, Value>,
    name: &str,
    entry: &[u8],
    convert: fn(&[u8]) -> Result<Value, Failure>,
) -> Result<(), Failure> {
    let (mut key, mut value) = (String::new(), convert(&[])?);
    for (number, field) in fields(entry)? {
        match (number, field) {
            (1, Field::Bytes(bytes)) => key = std::str::from_utf8(bytes).map_err(|_| malformed())?.to_owned(),
            (2, Field::Bytes(bytes)) => value = convert(bytes)?,
            _ => {}
        }
    }
    super::json::object(object, name).insert(key, value);
    Ok(())
}

fn text(bytes: &[u8]) -> Result<Value, Failure> {
    Ok(std::str::from_utf8(bytes).map_err(|_| malformed())?.into())
}

fn base64(bytes: &[u8]) -> Result<Value, Failure> {
    serde_json::to_value(k8s_openapi::ByteString(bytes.to_vec())).map_err(|_| malformed())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, u8::try_from(bytes.len()).unwrap()], bytes].concat()
    }

    fn secret() -> Vec<u8> {
        let entry = [field(1, b"key"), field(2, b"value")].concat();
        let raw = [field(1, &field(1, b"name")), field(2, &entry), field(3, b"Opaque")].concat();
        let kind = [field(1, b"v1"), field(2, b"Secret")].concat();
        [MAGIC, &field(1, &kind), &field(2, &raw)].concat()
    }

    #[test]
    fn a_secret_is_read() {
        assert_eq!(
            decode(&secret()).unwrap(),
            json!({
                "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
                "metadata": { "name": "name" }, "data": { "key": "dmFsdWU=" },
            })
        );
    }

    #[test]
    fn a_body_that_is_cut_or_changed_never_panics() {
        let whole = secret();
        for length in 0..whole.len() {
            let _ = decode(&whole[..length]);
            for byte in [0, 0x7f, 0x80, 0xff] {
                let mut changed = whole.clone();
                changed[length] = byte;
                let _ = decode(&changed);
            }
        }
    }
}
