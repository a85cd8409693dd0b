//! What each node holds.

use lingqu_model::{AttentionConfig, ModelConfig};

use crate::{Device, Inventory, PlanError, Workload};

/// Memory of one node, in bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeMemory {
    pub node: String,
    pub memory_bytes: u64,
    /// Embedding, head, attention, dense layers, routers and shared experts: servers hold them whole.
    pub resident_bytes: u64,
    pub expert_bytes: u64,
    /// Copies of routed experts, over all layers.
    pub experts: usize,
    pub kv_bytes: u64,
    /// Sequences that fill the KV cache.
    pub sequences: usize,
    pub activation_bytes: u64,
    pub reserve_bytes: u64,
}

impl NodeMemory {
    /// What is left.
    pub fn headroom_bytes(&self) -> u64 {
        let used = self.resident_bytes + self.expert_bytes + self.kv_bytes + self.activation_bytes + self.reserve_bytes;
        self.memory_bytes.saturating_sub(used)
    }

    /// `device` without any expert: what it holds as a server, and room for activations.
    ///
    /// # Errors
    /// Says by how much it is too small.
    pub(crate) fn without_experts(
        device: &Device,
        inventory: &Inventory,
        workload: &Workload,
        (servers, workers): (usize, usize),
    ) -> Result<Self, PlanError> {
        let serves = device.duty.serves();
        let sequences = if serves { workload.sequences.div_ceil(servers) } else { 0 };
        let config = &inventory.config;
        let rows = workload.prefill_rows.max(workload.sequences.div_ceil(servers));
        let mut activation_bytes = if serves { server_activations(config, rows, sequences) } else { 0 };
        if device.duty.works() {
            activation_bytes += expert_activations(config, rows * servers, workers);
        }
        let kv_token = inventory.kv_values() as f64 * config.layers as f64 * workload.kv_value_bytes;
        let memory = Self {
            node: device.name.clone(),
            memory_bytes: device.memory_bytes,
            resident_bytes: if serves { inventory.resident_bytes() } else { 0 },
            expert_bytes: 0,
            experts: 0,
            kv_bytes: whole_bytes(kv_token * sequences as f64 * workload.context_tokens as f64),
            sequences,
            activation_bytes,
            reserve_bytes: device.reserve_bytes,
        };
        let needed = memory.resident_bytes + memory.kv_bytes + activation_bytes + device.reserve_bytes;
        if needed > device.memory_bytes {
            return Err(PlanError::ServerTooSmall {
                node: memory.node,
                memory_bytes: device.memory_bytes,
                needed_bytes: needed,
                weight_bytes: memory.resident_bytes,
                kv_bytes: memory.kv_bytes,
                activation_bytes,
                reserve_bytes: device.reserve_bytes,
            });
        }
        Ok(memory)
    }
}

/// More than any device has is enough to say so: sums of these stay countable.
fn whole_bytes(bytes: f64) -> u64 {
    bytes.min(1e18) as u64
}

/// Buffers of a step of `rows` rows, in f32: the stream of hidden states with its norm and sum, queries and attention's
/// output, the feed-forward part, and logits.
fn server_activations(config: &ModelConfig, rows: usize, logit_rows: usize) -> u64 {
    let attention = match &config.attention {
        AttentionConfig::Gqa(a) => (2 * a.heads + 2 * a.kv_heads) * a.head_dim,
        // Queries in the space of the latent, and what comes back from there.
        AttentionConfig::Mla(a) => a.heads * (2 * a.kv_lora_rank + 2 * a.rope_dim + a.nope_dim + a.v_dim),
    };
    let shared = config.moe.as_ref().map_or(0, |moe| moe.intermediate * moe.shared_experts);
    let row = 4 * config.hidden + attention + 3 * config.ffn_intermediate.max(shared);
    whole_bytes(4.0 * (rows as f64 * row as f64 + logit_rows as f64 * config.vocab_size as f64))
}

/// Rows that come, their hidden layers and what goes back, in f32, for twice the mean of one worker.
fn expert_activations(config: &ModelConfig, rows: usize, workers: usize) -> u64 {
    let Some(moe) = &config.moe else { return 0 };
    let pairs = rows as f64 * moe.route.top_k as f64 * (2.0 / workers as f64).min(1.0);
    whole_bytes(4.0 * pairs * (2 * config.hidden + 3 * moe.intermediate) as f64)
}
