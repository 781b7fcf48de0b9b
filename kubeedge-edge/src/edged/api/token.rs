//! The secret by which those who may read the node's files prove it.

use std::{
    fmt::{self, Write as _},
    fs,
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// A token of 256 random bits, in hexadecimal.
#[derive(Clone)]
pub(super) struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

impl Token {
    /// Makes another one and puts it where it takes the place of an earlier one in one step.
    pub(super) fn make(path: &Path) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let mut random = [0; 32];
        fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
        let token = random.iter().fold(String::with_capacity(64), |mut token, byte| {
            // Writing to a String cannot fail.
            let _ = write!(token, "{byte:02x}");
            token
        });
        let next = path.with_extension("tmp");
        // What an interrupted start left may have another mode.
        match fs::remove_file(&next) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&next)?;
        file.write_all(token.as_bytes())?;
        fs::rename(&next, path)?;
        Ok(Self(token))
    }

    /// Whether this is what an `Authorization` header says. The time it takes does not depend on how much of it
    /// is right.
    pub(super) fn is_in(&self, header: &[u8]) -> bool {
        let Some((scheme, given)) = header.split_at_checked(7) else { return false };
        let same = |a: &[u8], b: &[u8]| {
            a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
        };
        scheme.eq_ignore_ascii_case(b"Bearer ") && same(given, self.0.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_token_is_for_the_owner_alone_and_another_one_each_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/api-token");
        let first = Token::make(&path).unwrap();
        fs::write(path.with_extension("tmp"), "left").unwrap();
        let second = Token::make(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), second.0);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(first.0 != second.0 && second.0.len() == 64);
        assert!(second.is_in(format!("bearer {}", second.0).as_bytes()));
        for wrong in [String::new(), "Bearer ".into(), format!("Bearer {}", first.0), second.0.clone()] {
            assert!(!second.is_in(wrong.as_bytes()), "{wrong:?}");
        }
        assert!(!format!("{second:?}").contains(&second.0));
    }
}
