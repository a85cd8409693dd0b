//! A cursor over little-endian bytes that cannot run past their end.

use crate::error::CheckpointError;

pub struct Reader<'a> {
    file: &'a str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub fn new(file: &'a str, bytes: &'a [u8]) -> Self {
        Self { file, bytes, at: 0 }
    }

    /// Bytes read so far.
    pub fn at(&self) -> usize {
        self.at
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// An error at this place of the file.
    pub fn fail<T>(&self, problem: impl std::fmt::Display) -> Result<T, CheckpointError> {
        Err(CheckpointError::file(self.file, format!("{problem} (at byte {})", self.at)))
    }

    /// The next `count` bytes; `what` says in errors what they were to be.
    pub fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8], CheckpointError> {
        if count > self.left() {
            return self.fail(format!("{what} takes {count} bytes, but the file ends after {}", self.left()));
        }
        let taken = &self.bytes[self.at..self.at + count];
        self.at += count;
        Ok(taken)
    }

    pub fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], CheckpointError> {
        Ok(self.take(N, what)?.try_into().expect("took N bytes"))
    }

    pub fn u32(&mut self, what: &str) -> Result<u32, CheckpointError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub fn u64(&mut self, what: &str) -> Result<u64, CheckpointError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A u64 count of things that take at least `bytes_each` bytes of what is left: checked before anything is
    /// allocated for them.
    pub fn count(&mut self, bytes_each: usize, what: &str) -> Result<usize, CheckpointError> {
        let count = self.u64(what)?;
        match usize::try_from(count) {
            Ok(n) if n <= self.left() / bytes_each => Ok(n),
            _ => self.fail(format!("{what} is {count}, more than the {} bytes left can hold", self.left())),
        }
    }

    /// A string: u64 length, then UTF-8. `bytes_max` bounds the length.
    pub fn string(&mut self, bytes_max: usize, what: &str) -> Result<&'a str, CheckpointError> {
        let length = self.count(1, what)?;
        if length > bytes_max {
            return self.fail(format!("{what} of {length} bytes; at most {bytes_max} are allowed"));
        }
        let bytes = self.take(length, what)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text),
            Err(_) => self.fail(format!("{what} is not UTF-8")),
        }
    }
}
