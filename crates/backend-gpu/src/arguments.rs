//! What kernels take, laid out as `kernels/README.md` says. Pointers are device addresses; strides count values.

use crate::driver::Address;

/// One argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Argument {
    Address(Address),
    U64(u64),
    U32(u32),
    F32(f32),
    View(ViewArgument),
    Step(StepArgument),
    Kv(KvArgument),
    Groups(GroupsArgument),
    Route(RouteArgument),
}

/// `[rows, heads, len]`: element (r, h, i) is `data[r * row_stride + h * head_stride + i]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct ViewArgument {
    pub data: Address,
    pub row_stride: u64,
    pub head_stride: u64,
    pub rows: u32,
    pub heads: u32,
    pub len: u32,
    pub zero: u32,
}

impl ViewArgument {
    /// `[rows, len]` without gaps.
    pub fn packed(data: Address, rows: usize, len: usize) -> Self {
        let (row_stride, rows, len) = (len as u64, rows as u32, len as u32);
        Self { data, row_stride, head_stride: row_stride, rows, heads: 1, len, zero: 0 }
    }
}

/// Tables of one step: `tokens, positions, sequence_of [rows]`, `blocks [sequences, blocks_max]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct StepArgument {
    pub tokens: Address,
    pub positions: Address,
    pub sequence_of: Address,
    pub blocks: Address,
    pub rows: u32,
    pub block_tokens: u32,
    pub blocks_max: u32,
    pub zero: u32,
}

/// One layer of the cache: f16 `[blocks, block_tokens, entry_values]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct KvArgument {
    pub cells: Address,
    pub entry_values: u32,
    pub kv_heads: u32,
    pub k_dim: u32,
    pub v_dim: u32,
    pub v_offset: u32,
    pub v_head_stride: u32,
}

/// Slots sorted by expert and cut in tiles; all addresses 0 where rows are taken as they are.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct GroupsArgument {
    pub order: Address,
    pub tiles: Address,
    pub tile_count: Address,
    /// Slot s reads row `s / inputs_per_row`.
    pub inputs_per_row: u32,
    pub zero: u32,
}

/// The router. Flags are 0 or 1; `groups` is 0 where whole experts compete.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RouteArgument {
    pub experts: u32,
    pub top_k: u32,
    pub sigmoid: u32,
    pub groups: u32,
    pub top_groups: u32,
    pub top2_sum: u32,
    pub normalise: u32,
    pub scale: f32,
}

/// An entry of a table of matrices in device memory, as 16 words of 32 bits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct MatrixEntry {
    pub planes: [Address; 4],
    pub format: u32,
    pub rows: u32,
    pub cols: u32,
    pub rows_per_scale: u32,
    pub cols_per_scale: u32,
}

impl MatrixEntry {
    pub fn words(&self) -> [u32; 16] {
        let mut words = [0; 16];
        for (pair, plane) in words.as_chunks_mut::<2>().0.iter_mut().zip(self.planes) {
            *pair = [plane as u32, (plane >> 32) as u32];
        }
        words[8..13].copy_from_slice(&[self.format, self.rows, self.cols, self.rows_per_scale, self.cols_per_scale]);
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structs_have_the_sizes_of_the_contract() {
        assert_eq!(size_of::<ViewArgument>(), 40);
        assert_eq!(size_of::<StepArgument>(), 48);
        assert_eq!(size_of::<KvArgument>(), 32);
        assert_eq!(size_of::<GroupsArgument>(), 32);
        assert_eq!(size_of::<RouteArgument>(), 32);
    }

    #[test]
    fn entries_are_little_endian_words() {
        let entry = MatrixEntry {
            planes: [0x1_0000_0010, 2, 3, 4],
            format: 5,
            rows: 6,
            cols: 7,
            rows_per_scale: 8,
            cols_per_scale: 9,
        };
        assert_eq!(entry.words(), [16, 1, 2, 0, 3, 0, 4, 0, 5, 6, 7, 8, 9, 0, 0, 0]);
    }
}
