//! Buffers of one step beside the residual stream, made once at load.

use lingqu_backend::{Backend, Buffer, PendingExperts, Result, Routing};

use crate::config::ModelConfig;
use crate::layers::workspace::Stream;

/// Rows that pass the layers together: those of a batch, or a half of them.
pub(super) struct Lane {
    pub stream: Stream,
    pub mixture: Option<MixtureBuffers>,
    /// Routed experts of the layer that was begun last.
    pub pending: Option<Pending>,
}

pub(super) struct Pending {
    pub experts: PendingExperts,
    /// Whether the stream's `out` has what shared experts say.
    pub has_shared: bool,
}

pub(super) struct AttentionBuffers {
    /// `[rows, q_lora_rank (or heads * (nope + rope)) + kv_lora_rank + rope]`
    pub query_kv_a: Buffer,
    /// `None` where queries have no latent of their own.
    pub query: Option<QueryBuffers>,
    /// Queries against the cache. `[rows, heads * (kv_lora_rank + rope)]`
    pub absorbed: Buffer,
    /// What goes into the cache: normed latent, rotated key. `[rows, kv_lora_rank + rope]`
    pub entry: Buffer,
    /// Weighted sums of latents. `[rows, heads * kv_lora_rank]`
    pub latents: Buffer,
    /// `[rows, heads * v]`
    pub attended: Buffer,
}

pub(super) struct QueryBuffers {
    /// `[rows, q_lora_rank]`
    pub latent: Buffer,
    /// `[rows, heads * (nope + rope)]`
    pub full: Buffer,
}

pub(super) struct MixtureBuffers {
    /// `[rows, experts]`
    pub router: Buffer,
    pub routing: Routing,
    /// `[rows, hidden]`
    pub routed: Buffer,
}

impl Lane {
    pub fn new(backend: &dyn Backend, config: &ModelConfig, rows_max: usize) -> Result<Self> {
        let stream = Stream::new(backend, config, rows_max)?;
        Ok(Self { stream, mixture: MixtureBuffers::new(backend, config, rows_max)?, pending: None })
    }
}

impl AttentionBuffers {
    pub fn new(backend: &dyn Backend, config: &ModelConfig, rows_max: usize) -> Result<Self> {
        let mla = config.mla();
        let (latent, q_width) = (mla.kv_lora_rank + mla.rope_dim, mla.heads * (mla.nope_dim + mla.rope_dim));
        let query = match mla.q_lora_rank {
            Some(rank) => {
                Some(QueryBuffers { latent: backend.alloc(rows_max, rank)?, full: backend.alloc(rows_max, q_width)? })
            }
            None => None,
        };
        Ok(Self {
            query_kv_a: backend.alloc(rows_max, mla.q_lora_rank.unwrap_or(q_width) + latent)?,
            query,
            absorbed: backend.alloc(rows_max, mla.heads * latent)?,
            entry: backend.alloc(rows_max, latent)?,
            latents: backend.alloc(rows_max, mla.heads * mla.kv_lora_rank)?,
            attended: backend.alloc(rows_max, mla.heads * mla.v_dim)?,
        })
    }

    pub fn set_rows(&mut self, rows: usize) {
        let Self { query_kv_a, query, absorbed, entry, latents, attended } = self;
        for buffer in [query_kv_a, absorbed, entry, latents, attended] {
            buffer.set_rows(rows);
        }
        if let Some(QueryBuffers { latent, full }) = query {
            latent.set_rows(rows);
            full.set_rows(rows);
        }
    }
}

impl MixtureBuffers {
    pub fn new(backend: &dyn Backend, config: &ModelConfig, rows_max: usize) -> Result<Option<Self>> {
        let Some(moe) = &config.moe else { return Ok(None) };
        Ok(Some(Self {
            router: backend.alloc(rows_max, moe.route.experts)?,
            routing: backend.alloc_routing(rows_max, moe.route.top_k)?,
            routed: backend.alloc(rows_max, config.hidden)?,
        }))
    }

    pub fn set_rows(&mut self, rows: usize) {
        self.router.set_rows(rows);
        self.routing.set_rows(rows);
        self.routed.set_rows(rows);
    }
}
