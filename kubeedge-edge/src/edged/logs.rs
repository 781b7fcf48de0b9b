//! Reads pieces of a container's log file, without ever holding more than one piece of it.

use std::{
    fs,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::PathBuf,
};

use kubeedge_core::{
    message::{LogChunk, LogRequest, Response},
    runtime::{ContainerState, LogFormat, ObservedContainer, ObservedSandbox},
};

use super::{rotation, state::Entry};

/// The most that one piece may have.
const CHUNK: usize = 256 << 10;

/// How much is read at once when looking for a place in the file.
const BLOCK: u64 = 64 << 10;

/// Which file to read, and what is known of its writer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    path: PathBuf,
    format: LogFormat,
    running: bool,
}

/// Finds the log that is asked for.
pub(crate) fn find(
    pod: Option<(&Entry, &[ObservedSandbox])>,
    request: &LogRequest,
) -> Result<Source, Response> {
    let failed = |code, message| Response::Failed { code, message };
    let name = format!("{}/{}", request.namespace, request.pod);
    let (entry, sandboxes) = pod.ok_or_else(|| failed(404, format!("pod {name} is not on this node")))?;
    let spec = entry.wanted().map(|pod| &pod.spec);
    let named: Vec<&str> = match spec {
        Some(spec) => {
            spec.containers.iter().chain(&spec.init_containers).map(|one| one.name.as_str()).collect()
        }
        None => Vec::new(),
    };
    let container = match (request.container.as_str(), spec) {
        ("", Some(spec)) if spec.containers.len() == 1 => spec.containers[0].name.as_str(),
        ("", _) => {
            let message =
                format!("a container name must be given for pod {name}, one of: {}", named.join(" "));
            return Err(failed(400, message));
        }
        (asked, _) if named.contains(&asked) => asked,
        (asked, _) => return Err(failed(404, format!("container {asked} is not in pod {name}"))),
    };
    let all = sandboxes.iter().flat_map(|sandbox| &sandbox.containers);
    let mut instances: Vec<&ObservedContainer> = all.filter(|one| one.name == container).collect();
    instances.sort_by_key(|one| std::cmp::Reverse(one.attempt));
    let found = instances.get(usize::from(request.previous));
    let found = found.ok_or_else(|| {
        let what = if request.previous { "has no previous instance" } else { "is waiting to start" };
        failed(400, format!("container {container} in pod {name} {what}"))
    })?;
    let log = found.log.as_ref().ok_or_else(|| failed(404, format!("container {container} keeps no log")))?;
    let running = matches!(found.state, ContainerState::Running { .. } | ContainerState::Created);
    Ok(Source { path: log.path.clone(), format: log.format, running })
}

/// A place in a log: an offset, and which file it is in, since a log goes on in another file when it is rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cursor {
    /// The low bits of the file's inode number; enough to tell the few files of one container apart.
    file: u16,
    offset: u64,
}

impl Cursor {
    const OFFSET_BITS: u32 = 48;

    fn to_number(self) -> u64 {
        u64::from(self.file) << Self::OFFSET_BITS | self.offset
    }

    fn of_number(number: u64) -> Self {
        let file = u16::try_from(number >> Self::OFFSET_BITS).unwrap_or(0);
        Self { file, offset: number & ((1 << Self::OFFSET_BITS) - 1) }
    }
}

fn tag_of(metadata: &fs::Metadata) -> u16 {
    u16::try_from(metadata.ino() & 0xffff).unwrap_or(0)
}

/// Reads the next piece: whole lines from the cursor on, or from where the request says to begin.
///
/// A line that its writer has not ended waits until it is, or until the writer is gone. The times of lines are
/// only known in CRI's format; in the other one, `since_ms` and `timestamps` have no effect. A log that was rotated
/// since the cursor is read to the end of the older file before the reader goes on in the next.
pub(crate) fn read(source: &Source, request: &LogRequest) -> io::Result<LogChunk> {
    let cursor = request.cursor.map(Cursor::of_number);
    let current = match fs::File::open(&source.path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let cursor = request.cursor.unwrap_or(0);
            return Ok(LogChunk { end: true, running: source.running, cursor, ..LogChunk::default() });
        }
        Err(error) => return Err(error),
    };
    let tag = tag_of(&current.metadata()?);
    if let Some(cursor) = cursor.filter(|cursor| cursor.file != tag)
        && let Some((old, next)) = older(source, cursor.file)?
    {
        let finished = Source { running: false, ..source.clone() };
        let mut chunk = piece(old, cursor.file, &finished, request, Some(cursor.offset))?;
        chunk.running = source.running;
        if chunk.end && request.limit_bytes.is_none_or(|limit| (chunk.data.len() as u64) < limit) {
            chunk.cursor = Cursor { file: next.unwrap_or(tag), offset: 0 }.to_number();
            chunk.end = false;
        }
        return Ok(chunk);
    }
    let begin = cursor.map(|cursor| if cursor.file == tag { cursor.offset } else { 0 });
    piece(current, tag, source, request, begin)
}

/// The older file of the log with this tag, and the tag of the rotated one that follows it, if there is any.
fn older(source: &Source, tag: u16) -> io::Result<Option<(fs::File, Option<u16>)>> {
    let rotated = rotation::rotated(&source.path)?;
    let mut files = rotated.iter().filter_map(|path| {
        let file = fs::File::open(path).ok()?;
        Some((tag_of(&file.metadata().ok()?), file))
    });
    let found = files.find(|(of, _)| *of == tag);
    Ok(found.map(|(_, file)| (file, files.next().map(|(tag, _)| tag))))
}

fn piece(
    mut file: fs::File,
    tag: u16,
    source: &Source,
    request: &LogRequest,
    begin: Option<u64>,
) -> io::Result<LogChunk> {
    let running = source.running;
    let length = file.metadata()?.len();
    let begin = match begin {
        // A file that is shorter than it was has been cut.
        Some(offset) if offset > length => 0,
        Some(offset) => offset,
        None => first_line(&mut file, length, source.format, request)?,
    };
    let raw = read_at(&mut file, begin, CHUNK as u64)?;
    let at_end = begin + raw.len() as u64 >= length;
    let (mut data, taken) = lines(&raw, source.format, request.timestamps, at_end && !running);
    let cursor = Cursor { file: tag, offset: begin + taken as u64 }.to_number();
    let mut chunk = LogChunk { cursor, end: at_end || taken == 0, running, ..LogChunk::default() };
    if let Some(limit) = request.limit_bytes
        && data.len() as u64 >= limit
    {
        data.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        (chunk.end, chunk.running) = (true, false);
    }
    chunk.data = data.into();
    Ok(chunk)
}

fn read_at(file: &mut fs::File, offset: u64, most: u64) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Where to begin: the later of what `tail_lines` and `since_ms` say.
fn first_line(file: &mut fs::File, length: u64, format: LogFormat, request: &LogRequest) -> io::Result<u64> {
    let tail = match request.tail_lines {
        Some(lines) => tail(file, length, lines)?,
        None => 0,
    };
    let since = match (request.since_ms, format) {
        (Some(since_ms), LogFormat::Cri) => since(file, length, since_ms)?,
        (Some(_), LogFormat::Plain) | (None, _) => 0,
    };
    Ok(tail.max(since))
}

/// Where the last `lines` lines begin, found from the end backwards.
fn tail(file: &mut fs::File, length: u64, lines: u64) -> io::Result<u64> {
    let mut missing = lines;
    let mut end = length;
    while end > 0 {
        let begin = end.saturating_sub(BLOCK);
        let block = read_at(file, begin, end - begin)?;
        for (at, _) in block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            let next = begin + at as u64 + 1;
            // The end of the last line begins no other line.
            if next < length {
                missing = missing.saturating_sub(1);
            }
            if missing == 0 {
                return Ok(if lines == 0 { length } else { next });
            }
        }
        end = begin;
    }
    Ok(if lines == 0 { length } else { 0 })
}

/// Where the first line begins that is not older: halving, because times only grow along the file.
fn since(file: &mut fs::File, length: u64, since_ms: u64) -> io::Result<u64> {
    let (mut low, mut high) = (0, length);
    while high - low > BLOCK {
        let middle = low + (high - low) / 2;
        let block = read_at(file, middle, BLOCK)?;
        let Some(line) = block.iter().position(|byte| *byte == b'\n').map(|at| at + 1) else { break };
        match time_of(&block[line..]) {
            Some(time) if time < since_ms => low = middle + line as u64,
            Some(_) => high = middle,
            None => break,
        }
    }
    loop {
        let block = read_at(file, low, BLOCK)?;
        let Some(line) = block.iter().position(|byte| *byte == b'\n').map(|at| at + 1) else {
            return Ok(low);
        };
        match time_of(&block) {
            Some(time) if time < since_ms => low += line as u64,
            Some(_) | None => return Ok(low),
        }
    }
}

fn time_of(line: &[u8]) -> Option<u64> {
    let text =
        std::str::from_utf8(line.get(..line.len().min(64))?.split(|byte| *byte == b' ').next()?).ok()?;
    let time: jiff::Timestamp = text.parse().ok()?;
    u64::try_from(time.as_millisecond()).ok()
}

/// Turns bytes of the file into bytes of the answer. Returns how many of the former were used.
fn lines(raw: &[u8], format: LogFormat, timestamps: bool, last: bool) -> (Vec<u8>, usize) {
    let mut out = Vec::with_capacity(raw.len());
    let (mut whole_out, mut whole_raw, mut at) = (0, 0, 0);
    // CRI cuts a long line into pieces marked `P`; the piece marked `F` ends it.
    let mut begins = true;
    for line in raw.split_inclusive(|byte| *byte == b'\n') {
        let ended = line.ends_with(b"\n");
        if !ended && !last && (at > 0 || line.len() < CHUNK) {
            break;
        }
        at += line.len();
        match (format, cri(line)) {
            (LogFormat::Cri, Some((time, partial, text))) => {
                if timestamps && begins {
                    out.extend_from_slice(time);
                    out.push(b' ');
                }
                out.extend_from_slice(if partial { text.strip_suffix(b"\n").unwrap_or(text) } else { text });
                begins = !partial;
            }
            (LogFormat::Plain, _) | (LogFormat::Cri, None) => out.extend_from_slice(line),
        }
        if begins {
            (whole_out, whole_raw) = (out.len(), at);
        }
    }
    // A line whose end is in the next piece begins there, unless it alone fills this one.
    if last || (whole_raw == 0 && raw.len() >= CHUNK) {
        return (out, at);
    }
    out.truncate(whole_out);
    (out, whole_raw)
}

/// Takes `<time> <stream> <P|F> <text>` apart.
fn cri(line: &[u8]) -> Option<(&[u8], bool, &[u8])> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let (time, stream, tag, text) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let known = matches!(stream, b"stdout" | b"stderr");
    let partial = tag.split(|byte| *byte == b':').next()? == b"P";
    known.then_some((time, partial, text))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn source(text: &[u8], format: LogFormat, running: bool) -> (tempfile::NamedTempFile, Source) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text).unwrap();
        let source = Source { path: file.path().into(), format, running };
        (file, source)
    }

    fn all(source: &Source, mut request: LogRequest) -> Vec<u8> {
        let mut bytes = Vec::new();
        loop {
            let chunk = read(source, &request).unwrap();
            assert!(chunk.data.len() <= CHUNK);
            bytes.extend_from_slice(&chunk.data);
            if chunk.end {
                return bytes;
            }
            assert_ne!(request.cursor, Some(chunk.cursor), "no progress");
            request.cursor = Some(chunk.cursor);
        }
    }

    #[test]
    fn pieces_are_whole_lines_and_together_the_whole_log() {
        let text: String = (0..100_000).map(|n| format!("line {n}\n")).collect();
        let (_file, source) = source(text.as_bytes(), LogFormat::Plain, false);
        assert!(read(&source, &LogRequest::default()).unwrap().data.ends_with(b"\n"));
        assert_eq!(all(&source, LogRequest::default()), text.as_bytes());
        let tail = LogRequest { tail_lines: Some(2), ..LogRequest::default() };
        assert_eq!(all(&source, tail), b"line 99998\nline 99999\n");
        let none = LogRequest { tail_lines: Some(0), ..LogRequest::default() };
        assert_eq!(all(&source, none), b"");
    }

    #[test]
    fn a_tail_longer_than_the_log_is_the_log() {
        let (_file, source) = source(b"a\nb\n", LogFormat::Plain, false);
        for lines in [2, 3, 100] {
            let tail = LogRequest { tail_lines: Some(lines), ..LogRequest::default() };
            assert_eq!(all(&source, tail), b"a\nb\n");
        }
    }

    #[test]
    fn cri_lines_lose_their_marks_and_cut_lines_are_joined() {
        let text = b"2026-01-02T03:04:05.1Z stdout P he\n2026-01-02T03:04:05.2Z stdout F llo\n2026-01-02T03:04:06Z stderr F x\n";
        let (_file, source) = source(text, LogFormat::Cri, true);
        assert_eq!(all(&source, LogRequest::default()), b"hello\nx\n");
        let timed = LogRequest { timestamps: true, ..LogRequest::default() };
        assert_eq!(all(&source, timed), b"2026-01-02T03:04:05.1Z hello\n2026-01-02T03:04:06Z x\n");
        let since_ms =
            Some("2026-01-02T03:04:06Z".parse::<jiff::Timestamp>().unwrap().as_millisecond() as u64);
        assert_eq!(all(&source, LogRequest { since_ms, ..LogRequest::default() }), b"x\n");
    }

    #[test]
    fn since_finds_its_place_in_a_long_log() {
        let at = |n: i64| jiff::Timestamp::from_second(1_700_000_000 + n).unwrap();
        let text: String = (0..20_000).map(|n| format!("{} stdout F {n}\n", at(n))).collect();
        let (_file, source) = source(text.as_bytes(), LogFormat::Cri, false);
        let since_ms = Some(at(19_998).as_millisecond() as u64);
        assert_eq!(all(&source, LogRequest { since_ms, ..LogRequest::default() }), b"19998\n19999\n");
    }

    #[test]
    fn an_unfinished_line_waits_for_its_writer() {
        let (mut file, mut source) = source(b"a\nb", LogFormat::Plain, true);
        let first = read(&source, &LogRequest::default()).unwrap();
        let offset = Cursor::of_number(first.cursor).offset;
        assert_eq!((&first.data[..], offset, first.end, first.running), (&b"a\n"[..], 2, true, true));
        file.write_all(b"c\n").unwrap();
        let next = LogRequest { cursor: Some(first.cursor), ..LogRequest::default() };
        assert_eq!(read(&source, &next).unwrap().data, &b"bc\n"[..]);
        file.write_all(b"end").unwrap();
        source.running = false;
        assert_eq!(all(&source, next), b"bc\nend");
    }

    #[test]
    fn a_line_longer_than_a_piece_is_cut_and_not_lost() {
        let text = vec![b'x'; CHUNK * 2 + 5];
        let (_file, source) = source(&text, LogFormat::Plain, false);
        assert_eq!(all(&source, LogRequest::default()), text);
    }

    #[test]
    fn a_limit_ends_the_log() {
        let (_file, source) = source(b"abc\ndef\n", LogFormat::Plain, true);
        let chunk = read(&source, &LogRequest { limit_bytes: Some(5), ..LogRequest::default() }).unwrap();
        assert_eq!((&chunk.data[..], chunk.end, chunk.running), (&b"abc\nd"[..], true, false));
    }

    #[test]
    fn who_follows_a_log_misses_nothing_of_it_when_it_is_rotated_and_reads_nothing_twice() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        let source = Source { path: path.clone(), format: LogFormat::Plain, running: true };
        let mut request = LogRequest::default();
        let mut seen = Vec::new();
        let mut follow = |seen: &mut Vec<u8>| {
            loop {
                let chunk = read(&source, &request).unwrap();
                seen.extend_from_slice(&chunk.data);
                request.cursor = Some(chunk.cursor);
                if chunk.end {
                    assert!(chunk.running);
                    return;
                }
            }
        };
        let append = |line: &str| {
            let mut file = fs::OpenOptions::new().create(true).append(true).open(&path).unwrap();
            file.write_all(line.as_bytes()).unwrap();
        };
        append("one\n");
        follow(&mut seen);
        append("two\n");
        fs::rename(&path, directory.path().join("0.log.20260101-000000")).unwrap();
        append("three\n");
        fs::rename(&path, directory.path().join("0.log.20260101-000001")).unwrap();
        append("four, which is longer than what was there before\n");
        follow(&mut seen);
        append("five\n");
        follow(&mut seen);
        assert_eq!(
            String::from_utf8(seen.clone()).unwrap(),
            "one\ntwo\nthree\nfour, which is longer than what was there before\nfive\n"
        );
        // What the reader was in has been removed since: what is left is read from its beginning.
        fs::rename(&path, directory.path().join("elsewhere")).unwrap();
        append("six\n");
        follow(&mut seen);
        assert!(seen.ends_with(b"five\nsix\n"));
    }
}
