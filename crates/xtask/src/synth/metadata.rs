//! The keys that tell a reader the model's shape (llama.cpp, `gguf-py/gguf/constants.py`).

use lingqu_testkit::gguf_writer::GgufWriter;

use super::plan::{Layout, Quant};
use super::shape::{Attention, Mla, Moe, Shape};

pub fn add(writer: GgufWriter, shape: &Shape, quant: Quant, layout: Layout) -> GgufWriter {
    let mut keys = Keys { writer, architecture: shape.architecture };
    keys.writer = keys.writer.str("general.name", &format!("{} of random weights", shape.name));
    // `enum llama_ftype`
    let file_type = match quant {
        Quant::Q8_0 => 7,
        Quant::Q4KM => 15,
    };
    keys.writer = keys.writer.u32("general.file_type", file_type).u32("general.quantization_version", 2);
    keys.count("block_count", shape.layers);
    keys.count("context_length", shape.context_tokens as usize);
    keys.count("embedding_length", shape.hidden);
    keys.count("feed_forward_length", shape.intermediate);
    keys.count("attention.head_count", shape.heads);
    keys.count("vocab_size", shape.vocab);
    keys.number("rope.freq_base", shape.rope_theta);
    keys.number("attention.layer_norm_rms_epsilon", shape.rms_norm_eps);
    match &shape.attention {
        &Attention::Gqa { kv_heads, head_dim, .. } => {
            keys.count("attention.head_count_kv", kv_heads);
            keys.count("attention.key_length", head_dim);
            keys.count("attention.value_length", head_dim);
            keys.count("rope.dimension_count", head_dim);
        }
        Attention::Mla(mla) => keys.mla(mla, shape.heads, layout),
    }
    if let Some(moe) = &shape.moe {
        keys.moe(moe);
    }
    keys.writer
}

struct Keys {
    writer: GgufWriter,
    architecture: &'static str,
}

impl Keys {
    /// Adds to the file under the architecture's prefix.
    fn add(&mut self, key: &str, add: impl FnOnce(GgufWriter, &str) -> GgufWriter) {
        let writer = std::mem::take(&mut self.writer);
        self.writer = add(writer, &format!("{}.{key}", self.architecture));
    }

    fn count(&mut self, key: &str, value: usize) {
        self.add(key, |writer, key| writer.u32(key, u32::try_from(value).expect("shapes are small")));
    }

    fn number(&mut self, key: &str, value: f32) {
        self.add(key, |writer, key| writer.f32(key, value));
    }

    /// With a split `kv_b` attention is described as it runs absorbed: one head of keys and values, the latent.
    fn mla(&mut self, mla: &Mla, heads: usize, layout: Layout) {
        let &Mla { kv_lora_rank, nope_dim, rope_dim, v_dim, .. } = mla;
        match layout {
            Layout::SplitKvB => {
                self.count("attention.head_count_kv", 1);
                self.count("attention.key_length", kv_lora_rank + rope_dim);
                self.count("attention.value_length", kv_lora_rank);
                self.count("attention.key_length_mla", nope_dim + rope_dim);
                self.count("attention.value_length_mla", v_dim);
            }
            Layout::MergedKvB => {
                self.count("attention.head_count_kv", heads);
                self.count("attention.key_length", nope_dim + rope_dim);
                self.count("attention.value_length", v_dim);
            }
        }
        if let Some(rank) = mla.q_lora_rank {
            self.count("attention.q_lora_rank", rank);
        }
        self.count("attention.kv_lora_rank", kv_lora_rank);
        self.count("rope.dimension_count", rope_dim);
        self.add("rope.scaling.type", |writer, key| writer.str(key, "yarn"));
        self.number("rope.scaling.factor", 40.0);
        self.count("rope.scaling.original_context_length", 4096);
        self.number("rope.scaling.yarn_log_multiplier", mla.yarn_log_multiplier);
    }

    fn moe(&mut self, moe: &Moe) {
        self.count("leading_dense_block_count", moe.dense_layers);
        self.count("expert_count", moe.experts);
        self.count("expert_used_count", moe.top_k);
        self.count("expert_shared_count", moe.shared_experts);
        self.count("expert_feed_forward_length", moe.intermediate);
        self.count("expert_group_count", moe.groups.0);
        self.count("expert_group_used_count", moe.groups.1);
        self.count("expert_gating_func", if moe.is_sigmoid { 2 } else { 1 });
        self.add("expert_weights_norm", |writer, key| writer.bool(key, moe.normalise));
        self.number("expert_weights_scale", moe.scale);
    }
}
