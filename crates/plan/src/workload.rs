//! What the cluster is to do.

use crate::PlanError;

/// How activations cross the network, as the `wire` of a cluster says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    F32,
    Bf16,
    /// Out with one f32 scale to 128 values; back as [`Wire::Bf16`].
    Int8,
}

impl Wire {
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }

    /// Bytes of a row of `hidden` values on its way out.
    pub fn row_bytes(self, hidden: usize) -> f64 {
        match self {
            Self::F32 => 4.0 * hidden as f64,
            Self::Bf16 => 2.0 * hidden as f64,
            Self::Int8 => (hidden + 4 * hidden.div_ceil(128)) as f64,
        }
    }

    /// Bytes of what an expert makes of it.
    pub fn back_bytes(self, hidden: usize) -> f64 {
        match self {
            Self::F32 => Self::F32.row_bytes(hidden),
            Self::Bf16 | Self::Int8 => Self::Bf16.row_bytes(hidden),
        }
    }
}

/// Requests, and how they are served.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Sequences decoded at a time, over all servers.
    pub sequences: usize,
    /// Tokens that each of them has in the KV cache.
    pub context_tokens: usize,
    /// Rows of a step that computes prompts, on one server.
    pub prefill_rows: usize,
    /// Bytes of one value of the KV cache.
    pub kv_value_bytes: f64,
    pub wire: Wire,
    /// Extra copies, as a share of the experts.
    pub redundancy: f64,
    /// Measured rows by layer and expert; None: even.
    pub load: Option<Vec<Vec<u64>>>,
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            sequences: 16,
            context_tokens: 4096,
            prefill_rows: 512,
            kv_value_bytes: 2.0,
            wire: Wire::Bf16,
            redundancy: 0.0,
            load: None,
        }
    }
}

impl Workload {
    /// # Errors
    /// Name the field that is wrong.
    pub fn validate(&self, context_tokens_max: usize) -> Result<(), PlanError> {
        /// Far beyond any cluster; keeps products of counts countable.
        const COUNT_MAX: usize = 1 << 20;
        let error = |field, problem| Err(PlanError::Workload { field, problem });
        for (field, count) in [("sequences", self.sequences), ("prefill rows", self.prefill_rows)] {
            if count == 0 || count > COUNT_MAX {
                return error(field, format!("{count} is not in 1..={COUNT_MAX}"));
            }
        }
        if self.context_tokens == 0 || self.context_tokens > context_tokens_max {
            return error("context", format!("{} is not in 1..={context_tokens_max}", self.context_tokens));
        }
        if !(self.redundancy.is_finite() && (0.0..=16.0).contains(&self.redundancy)) {
            return error("redundancy", format!("{} is not in 0..=16", self.redundancy));
        }
        Ok(())
    }
}
