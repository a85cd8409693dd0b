//! Shared, immutable bytes: a slice of a mapped file, of an embedded file or of a buffer.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Who keeps bytes alive.
pub trait Owner: Send + Sync {
    fn bytes(&self) -> &[u8];

    /// A hint that these bytes will hardly be read again: a mapped file may give their memory back.
    fn release(&self, _: Range<usize>) {}
}

impl Owner for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

impl Owner for &'static [u8] {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// A cheap-to-clone view of bytes that somebody else keeps alive.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn Owner>,
    range: Range<usize>,
}

impl Bytes {
    /// All bytes of `owner`.
    pub fn new(owner: Arc<dyn Owner>) -> Self {
        let range = 0..owner.bytes().len();
        Self { owner, range }
    }

    /// The bytes `range` of this view, or `None` where it does not lie inside.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        if range.start > range.end || range.end > self.range.len() {
            return None;
        }
        let start = self.range.start;
        Some(Self { owner: self.owner.clone(), range: start + range.start..start + range.end })
    }

    pub fn as_slice(&self) -> &[u8] {
        &self.owner.bytes()[self.range.clone()]
    }

    /// Says that these bytes will hardly be read again; they stay readable.
    pub fn release(&self) {
        self.owner.release(self.range.clone());
    }

    pub fn len(&self) -> usize {
        self.range.len()
    }

    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self::new(Arc::new(bytes))
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({})", self.len())
    }
}
