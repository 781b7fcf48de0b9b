use super::WireError;

/// Refuses a frame whose lists are longer than any honest peer sends, before memory is taken for them.
///
/// An element of a list can be two bytes on the wire and a hundred and more in memory, so a frame within its lane's
/// limit could take a hundred times that.
pub(super) fn check(bytes: &[u8]) -> Result<(), WireError> {
    for Limit { frame, field, path, most } in &LIMITS {
        if occurrences(bytes, path) > *most {
            let why = format!("there are more than {most}");
            return Err(WireError::Invalid { frame, field, why });
        }
    }
    Ok(())
}

struct Limit {
    frame: &'static str,
    field: &'static str,
    /// The numbers of the fields that lead to the list in `proto/link.proto`, from `Frame` on.
    path: &'static [u32],
    most: usize,
}

const LIMITS: [Limit; 6] = [
    // Our edges send 128 in a part.
    Limit { frame: "inventory part", field: "entries", path: &[8, 3], most: 8192 },
    Limit { frame: "device report", field: "twins", path: &[10, 7, 4], most: 8192 },
    Limit { frame: "device report", field: "reported.metadata", path: &[10, 7, 4, 2, 4], most: 32_768 },
    Limit {
        frame: "device report",
        field: "observed_desired.metadata",
        path: &[10, 7, 4, 3, 4],
        most: 32_768,
    },
    // HTTP servers commonly take 100 header fields.
    Limit { frame: "request", field: "headers", path: &[13, 4, 4], most: 1024 },
    Limit { frame: "response", field: "headers", path: &[14, 3, 2], most: 1024 },
];

/// How often the field at the end of `path` occurs. What is malformed ends the counting: the reader stops there too.
fn occurrences(mut bytes: &[u8], path: &[u32]) -> usize {
    let Some((wanted, rest)) = path.split_first() else { return 1 };
    let mut found = 0;
    while let Some((number, body)) = next_field(&mut bytes) {
        if number == u64::from(*wanted)
            && let Some(body) = body
        {
            found += occurrences(body, rest);
        }
    }
    found
}

/// The number of the next field, and its content if that has a length.
fn next_field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Option<&'a [u8]>)> {
    let key = varint(bytes)?;
    let content = match key & 7 {
        0 => {
            varint(bytes)?;
            None
        }
        1 => take(bytes, 8).map(|_| None)?,
        2 => {
            let length = usize::try_from(varint(bytes)?).ok()?;
            Some(take(bytes, length)?)
        }
        5 => take(bytes, 4).map(|_| None)?,
        _ => return None,
    };
    Some((key >> 3, content))
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
