//! Asks for the next tile's entries while this one is computed: the hardware does not see beyond a tile, for between
//! two there is a long time without a read, and entries of several kv heads are read with gaps.

use super::entries::EntryShape;
use super::tasks::Group;

/// Values of a cache line.
const LINE: usize = 32;

/// A tile's entries, asked for bit by bit.
pub(super) struct Ahead<'a> {
    cells: &'a [u16],
    /// Where the entries start in the cells.
    entries: &'a [usize],
    /// Where keys and values start in an entry, and their lines; none of values that are in keys.
    key: [usize; 2],
    value: [usize; 2],
    /// Lines asked for.
    done: usize,
    /// Of the work that the tile at hand takes, roughly in cycles: all, and what has passed.
    work: usize,
    passed: usize,
}

impl<'a> Ahead<'a> {
    /// The entries of the next tile, while a group goes over this one.
    pub fn new(cells: &'a [u16], entries: &'a [usize], shape: EntryShape, group: &Group) -> Self {
        let [key, value] = shape.places(group.first_kv, group.kv_heads);
        let lines = |values: usize| values.div_ceil(LINE);
        let value_lines = if shape.shared { 0 } else { lines(value.len()) };
        let products = (group.rows * group.heads).div_ceil(6) * Self::PRODUCT + Self::DECODING;
        let work = (shape.k_blocks() + shape.v_blocks()) * products + shape.k_blocks() * Self::TURNING;
        let (key, value) = ([key.start, lines(key.len())], [value.start, value_lines]);
        Self { cells, entries, key, value, done: 0, work: group.kv_heads * work, passed: 0 }
    }

    #[cfg(test)]
    pub fn none() -> Self {
        Self { cells: &[], entries: &[], key: [0, 1], value: [0, 0], done: 0, work: 1, passed: 0 }
    }

    /// What 6 rows of a product, and the transposition and the decoding of 64 x 64 values take.
    pub const PRODUCT: usize = 800;
    pub const TURNING: usize = 700;
    pub const DECODING: usize = 350;

    /// Asks for as many lines as are due after this much more work.
    #[inline(always)]
    pub fn pass(&mut self, work: usize) {
        let lines = self.key[1] + self.value[1];
        self.passed += work;
        let due = (self.entries.len() * lines * self.passed / self.work).min(self.entries.len() * lines);
        while self.done < due {
            let (entry, line) = (self.entries[self.done / lines], self.done % lines);
            let at = match line.checked_sub(self.key[1]) {
                None => self.key[0] + line * LINE,
                Some(line) => self.value[0] + line * LINE,
            };
            fetch(self.cells.as_ptr().wrapping_add(entry + at));
            self.done += 1;
        }
    }
}

#[inline(always)]
fn fetch(address: *const u16) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a hint; it reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
