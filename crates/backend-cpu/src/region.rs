//! Memory of repacked weights: small matrices share huge pages.
//!
//! A matrix by itself leaves its last huge page to small ones, which a processor's prefetching does not cross: Q8_0 was
//! read a tenth slower so.

use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Mutex, PoisonError};

use crate::Result;
use crate::memory::Zeroed;
use crate::team::Shares;

/// What is taken from the system at once, and of which a region is at most half.
const CHUNK_BYTES: usize = 64 << 20;
/// Where regions start: lines.
const ALIGN_BYTES: usize = 64;

/// Zeroed bytes of their own, perhaps in a piece of memory that others have parts of, which is freed with the last of
/// them.
pub(crate) struct Region {
    /// Owns the memory; not looked at.
    _chunk: Arc<Zeroed<u8>>,
    pointer: *mut u8,
    len: usize,
}

// SAFETY: its bytes are its own, as those of a `Box<[u8]>`.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

/// Hands out regions.
#[derive(Default)]
pub(crate) struct Regions(Mutex<Option<Chunk>>);

/// A piece of memory of which the rest is free.
struct Chunk {
    memory: Arc<Zeroed<u8>>,
    pointer: *mut u8,
    free: Range<usize>,
}

// SAFETY: the pointer is into memory that it owns, of which it hands out each byte once.
unsafe impl Send for Chunk {}

impl Chunk {
    fn new(what: &str, bytes: usize) -> Result<Self> {
        let mut memory = Zeroed::huge(what, &[bytes])?;
        let pointer = memory.as_mut_ptr();
        Ok(Self { memory: Arc::new(memory), pointer, free: 0..bytes })
    }

    fn take(&mut self, len: usize) -> Region {
        let start = self.free.start;
        assert!(len <= self.free.len(), "{len} of {} bytes", self.free.len());
        self.free.start = (start + len).next_multiple_of(ALIGN_BYTES).min(self.free.end);
        Region { _chunk: self.memory.clone(), pointer: self.pointer.wrapping_add(start), len }
    }
}

impl Regions {
    /// Zeroed bytes at the alignment of a line.
    ///
    /// # Errors
    /// [`lingqu_backend::BackendError::OutOfMemory`] naming `what`.
    pub fn take(&self, what: &str, len: usize) -> Result<Region> {
        if len > CHUNK_BYTES / 2 {
            return Ok(Chunk::new(what, len)?.take(len));
        }
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let chunk = match &mut *current {
            Some(chunk) if len <= chunk.free.len() => chunk,
            other => other.insert(Chunk::new(what, CHUNK_BYTES)?),
        };
        Ok(chunk.take(len))
    }
}

impl Region {
    /// Its bytes, to be written by several threads though others may hold the region.
    ///
    /// # Safety
    /// Nobody may read it meanwhile.
    pub unsafe fn shares(&self) -> Shares<u8> {
        // SAFETY: the caller's.
        Shares::new(unsafe { std::slice::from_raw_parts_mut(self.pointer, self.len) })
    }
}

impl Deref for Region {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: bytes of memory that lives as long, handed out once; zeros or what was written since.
        unsafe { std::slice::from_raw_parts(self.pointer, self.len) }
    }
}

impl DerefMut for Region {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.pointer, self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_zeros_lie_at_lines_and_do_not_overlap() {
        let regions = Regions::default();
        let lens = [1, 64, 100, CHUNK_BYTES / 2, 5, CHUNK_BYTES / 2 + 1, CHUNK_BYTES / 2 - 100, 4096];
        let mut all: Vec<Region> = lens.iter().map(|&len| regions.take("a test", len).unwrap()).collect();
        drop(regions);
        for (i, region) in all.iter_mut().enumerate() {
            assert!(region.as_ptr().addr().is_multiple_of(ALIGN_BYTES));
            assert!(region.len() == lens[i] && region.iter().all(|&byte| byte == 0));
            region.fill(i as u8 + 1);
        }
        all.remove(0); // others of its chunk stay
        for (i, region) in all.iter().enumerate() {
            assert!(region.iter().all(|&byte| byte == i as u8 + 2), "region {}", i + 1);
        }
    }

    #[test]
    fn small_regions_share_a_chunk() {
        let regions = Regions::default();
        let [a, b] = [100, 200].map(|len| regions.take("a test", len).unwrap());
        assert_eq!(b.as_ptr().addr() - a.as_ptr().addr(), 128);
    }
}
