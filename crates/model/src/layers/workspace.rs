//! Buffers of one step, made once at load and used again in each.

use lingqu_backend::{Backend, Buffer, Result, Step, View, Weight};

use crate::LoadOptions;
use crate::config::{GqaConfig, ModelConfig};

/// What every architecture needs around its layers.
pub(crate) struct Stream {
    /// The residual stream. `[rows, hidden]`
    pub x: Buffer,
    /// Its rows that are left in the last layer, before the two change places.
    kept: Buffer,
    /// `x` after a norm. `[rows, hidden]`
    pub normed: Buffer,
    /// What a part of a layer adds to `x`. `[rows, hidden]`
    pub out: Buffer,
}

impl Stream {
    pub fn new(backend: &dyn Backend, config: &ModelConfig, rows_max: usize) -> Result<Self> {
        Ok(Self {
            x: backend.alloc(rows_max, config.hidden)?,
            kept: backend.alloc(rows_max, config.hidden)?,
            normed: backend.alloc(rows_max, config.hidden)?,
            out: backend.alloc(rows_max, config.hidden)?,
        })
    }

    pub fn set_rows(&mut self, rows: usize) {
        for buffer in [&mut self.x, &mut self.normed, &mut self.out] {
            buffer.set_rows(rows);
        }
    }

    /// Leaves only the rows whose logits are wanted. x `[rows, hidden]` becomes `[logit_rows, hidden]`.
    pub fn keep_logit_rows(&mut self, backend: &dyn Backend, step: &Step) -> Result<()> {
        self.kept.set_rows(step.logit_rows());
        backend.gather_logit_rows(step, self.x.view(), self.kept.view_mut())?;
        std::mem::swap(&mut self.x, &mut self.kept);
        self.set_rows(step.logit_rows());
        Ok(())
    }
}

/// `[logit_rows, vocab]`
pub(crate) struct Logits(Buffer);

impl Logits {
    pub fn new(backend: &dyn Backend, config: &ModelConfig, options: &LoadOptions) -> Result<Self> {
        Ok(Self(backend.alloc(options.logit_rows_max, config.vocab_size)?))
    }

    /// What the head makes of `normed` `[logit_rows, hidden]`.
    pub fn of(&mut self, backend: &dyn Backend, normed: View<'_>, head: &Weight) -> Result<View<'_>> {
        self.0.set_rows(normed.rows());
        backend.linear(normed, head, self.0.view_mut())?;
        Ok(self.0.view())
    }

    /// The answer where no logits are wanted: `[0, vocab]`.
    pub fn none(&mut self) -> View<'_> {
        self.0.set_rows(0);
        self.0.view()
    }
}

/// Buffers of grouped-query attention.
pub(crate) struct GqaBuffers {
    /// `[rows, (heads + 2 * kv_heads) * head_dim]`
    pub qkv: Buffer,
    /// Rotated. `[rows, heads * head_dim]`
    pub q: Buffer,
    /// Rotated. `[rows, kv_heads * head_dim]`
    pub k: Buffer,
    /// `[rows, heads * head_dim]`
    pub attended: Buffer,
}

impl GqaBuffers {
    pub fn new(backend: &dyn Backend, gqa: &GqaConfig, rows_max: usize) -> Result<Self> {
        let (q_width, kv_width) = (gqa.heads * gqa.head_dim, gqa.kv_heads * gqa.head_dim);
        Ok(Self {
            qkv: backend.alloc(rows_max, q_width + 2 * kv_width)?,
            q: backend.alloc(rows_max, q_width)?,
            k: backend.alloc(rows_max, kv_width)?,
            attended: backend.alloc(rows_max, q_width)?,
        })
    }

    pub fn set_rows(&mut self, rows: usize) {
        for buffer in [&mut self.qkv, &mut self.q, &mut self.k, &mut self.attended] {
            buffer.set_rows(rows);
        }
    }
}

impl GqaConfig {
    /// Queries, keys and values in the columns of `qkv`. `[rows, heads, head_dim]`, `[rows, kv_heads, head_dim]` twice
    pub(crate) fn split<'a>(&self, qkv: &'a Buffer) -> [View<'a>; 3] {
        let (q_width, kv_width) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let part = |start: usize, width: usize, heads: usize| qkv.view().cols(start..start + width).split_heads(heads);
        [
            part(0, q_width, self.heads),
            part(q_width, kv_width, self.kv_heads),
            part(q_width + kv_width, kv_width, self.kv_heads),
        ]
    }
}
