//! What all processes of a cluster share.

use std::fmt;
use std::path::Path;

use crate::{FabricError, Result};

/// The shortest secret: 128 bits, if they are random.
const BYTES_MIN: usize = 16;
/// A file longer than this was not meant.
const BYTES_MAX: usize = 4096;

/// Never shown.
#[derive(Clone)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Without the white space around it.
    pub fn new(bytes: &[u8]) -> Result<Self> {
        let bytes = bytes.trim_ascii();
        match bytes.len() {
            BYTES_MIN..=BYTES_MAX => Ok(Self(bytes.to_vec())),
            n => Err(FabricError::Secret(format!("has {n} bytes, not {BYTES_MIN} to {BYTES_MAX}"))),
        }
    }

    pub fn read(path: &Path) -> Result<Self> {
        let problem = |problem: String| FabricError::Secret(format!("in {} {problem}", path.display()));
        let cannot = |e: std::io::Error| problem(format!("cannot be read: {e}"));
        let bytes = std::fs::metadata(path).map_err(cannot)?.len();
        if bytes > BYTES_MAX as u64 {
            return Err(problem(format!("has {bytes} bytes, not {BYTES_MIN} to {BYTES_MAX}")));
        }
        Self::new(&std::fs::read(path).map_err(cannot)?)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_have_a_length_and_are_not_shown() {
        let secret = Secret::new(b"  0123456789abcdef\n").expect("16 bytes");
        assert_eq!((secret.bytes(), format!("{secret:?}").as_str()), (&b"0123456789abcdef"[..], "Secret(..)"));
        for bad in [&b"short"[..], b"                ", &[b'x'; BYTES_MAX + 1]] {
            assert!(Secret::new(bad).is_err());
        }
        assert!(Secret::read(Path::new("/nowhere/at/all")).is_err());
    }
}
