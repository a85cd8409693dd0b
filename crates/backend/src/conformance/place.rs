//! Where inputs and outputs lie: views with other columns around them.

use lingqu_types::{Batch, BlockId, SequenceSlice};

use super::Problem;
use super::random::Random;
use crate::{Backend, Buffer, View, ViewMut};

/// A view of a buffer still to be made: `heads` of `len` columns.
#[derive(Clone, Copy)]
pub struct Place {
    cols: usize,
    offset: usize,
    heads: usize,
    head_stride: usize,
    len: usize,
}

/// What lies around an output before the op.
const AROUND: f32 = -77.0;

impl Place {
    /// One row of `width` columns, or the same as heads side by side.
    pub fn flat(random: &mut Random, width: usize) -> Self {
        let heads = if width.is_multiple_of(3) && random.chance() { 3 } else { 1 };
        let place = Self::heads(random, heads, width / heads);
        let tight = place.cols - (place.head_stride - place.len) * heads;
        Self { head_stride: place.len, cols: tight, ..place }
    }

    /// Heads that may have columns between them.
    pub fn heads(random: &mut Random, heads: usize, len: usize) -> Self {
        let mut gap = || if random.chance() { random.within(1, 9) } else { 0 };
        let (offset, between, after) = (gap(), gap(), gap());
        let head_stride = len + between;
        Self { cols: offset + heads * head_stride + after, offset, heads, head_stride, len }
    }

    /// The same heads, elsewhere.
    pub fn elsewhere(self, random: &mut Random) -> Self {
        let moved = random.below(9);
        Self { offset: moved, cols: moved + self.heads * self.head_stride + random.below(9), ..self }
    }

    pub fn width(self) -> usize {
        self.heads * self.len
    }

    pub fn view(self, buffer: &Buffer) -> View<'_> {
        let Self { offset, heads, head_stride, len, .. } = self;
        View { buffer, heads, head_stride, offset, len }
    }

    pub fn view_mut(self, buffer: &mut Buffer) -> ViewMut<'_> {
        let Self { offset, heads, head_stride, len, .. } = self;
        ViewMut { buffer, heads, head_stride, offset, len }
    }

    /// Where each value of a row lies.
    fn columns(self) -> impl Iterator<Item = usize> {
        (0..self.heads).flat_map(move |h| (0..self.len).map(move |i| self.offset + h * self.head_stride + i))
    }

    /// A buffer with `values` `[rows, width]` in its view and `around` elsewhere.
    fn fill(self, backend: &dyn Backend, values: &[f32], around: f32) -> Result<Buffer, Problem> {
        let rows = values.len() / self.width();
        let mut all = vec![around; rows * self.cols];
        for (row, values) in all.chunks_exact_mut(self.cols).zip(values.chunks_exact(self.width())) {
            self.columns().zip(values).for_each(|(at, value)| row[at] = *value);
        }
        let mut buffer = backend.alloc(rows + 3, self.cols)?;
        buffer.set_rows(rows);
        backend.write(&all, buffer.view_mut())?;
        Ok(buffer)
    }

    /// A buffer for the input of an op.
    pub fn input(self, backend: &dyn Backend, values: &[f32]) -> Result<Buffer, Problem> {
        self.fill(backend, values, f32::NAN)
    }

    /// A buffer for the output of an op that is to overwrite `values`.
    pub fn output_over(self, backend: &dyn Backend, values: &[f32]) -> Result<Buffer, Problem> {
        self.fill(backend, values, AROUND)
    }

    /// A buffer for the output of an op.
    pub fn output(self, backend: &dyn Backend, rows: usize) -> Result<Buffer, Problem> {
        self.output_over(backend, &vec![AROUND; rows * self.width()])
    }

    /// The output of an op, once it is clear that nothing beside it was written.
    pub fn result(self, backend: &dyn Backend, buffer: &Buffer) -> Result<Vec<f32>, Problem> {
        let mut all = vec![0.0; buffer.rows() * self.cols];
        backend.read(buffer.view(), &mut all)?;
        let mut values = Vec::with_capacity(buffer.rows() * self.width());
        for row in all.chunks_exact_mut(self.cols) {
            for at in self.columns() {
                values.push(row[at]);
                row[at] = AROUND;
            }
            if let Some(at) = row.iter().position(|v| *v != AROUND) {
                return Err(Problem(format!("wrote column {at}, which is not in its view")));
            }
        }
        let mut narrow = vec![0.0; values.len()];
        backend.read(self.view(buffer), &mut narrow)?;
        match super::same_bits(&narrow, &values).failure {
            Some(failure) => Err(Problem(format!("a view does not read like its buffer: {failure}"))),
            None => Ok(values),
        }
    }
}

/// Rows of `[rows, width]`.
pub fn select(values: &[f32], width: usize, rows: &[usize]) -> Vec<f32> {
    rows.iter().flat_map(|r| &values[r * width..][..width]).copied().collect()
}

/// A batch of rows with these tokens at these positions: runs of consecutive positions are one sequence.
pub fn batch(tokens: Vec<u32>, positions: &[u32], block_tokens: usize) -> Batch {
    let mut sequences: Vec<SequenceSlice> = Vec::new();
    for (row, position) in positions.iter().enumerate() {
        match sequences.last_mut() {
            Some(s) if row > 0 && positions[row - 1] + 1 == *position => s.rows.end = row + 1,
            _ => sequences.push(SequenceSlice {
                rows: row..row + 1,
                context: *position as usize,
                blocks: Vec::new(),
                adapter: None,
            }),
        }
    }
    for s in &mut sequences {
        s.blocks = (0..(s.context + s.rows.len()).div_ceil(block_tokens)).map(|b| BlockId(b as u32)).collect();
    }
    Batch { tokens, sequences, logit_rows: Vec::new() }
}
