//! The shapes of released models, from their `config.json`.

/// A decoder's dimensions, in the terms of llama.cpp's metadata keys.
#[derive(Clone, Debug)]
pub struct Shape {
    pub name: &'static str,
    /// `general.architecture`
    pub architecture: &'static str,
    /// `tokenizer.ggml.pre`
    pub pre_tokenizer: &'static str,
    pub vocab: usize,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    /// Width of the dense layers' FFN.
    pub intermediate: usize,
    pub context_tokens: u32,
    pub rope_theta: f32,
    pub rms_norm_eps: f32,
    /// The embedding is the head too.
    pub is_tied: bool,
    pub attention: Attention,
    pub moe: Option<Moe>,
}

#[derive(Clone, Debug)]
pub enum Attention {
    Gqa { kv_heads: usize, head_dim: usize, has_qkv_bias: bool },
    Mla(Mla),
}

#[derive(Clone, Debug)]
pub struct Mla {
    pub q_lora_rank: Option<usize>,
    pub kv_lora_rank: usize,
    pub nope_dim: usize,
    pub rope_dim: usize,
    pub v_dim: usize,
    /// 0.1 * `mscale_all_dim` of yarn.
    pub yarn_log_multiplier: f32,
}

#[derive(Clone, Debug)]
pub struct Moe {
    pub experts: usize,
    pub top_k: usize,
    pub shared_experts: usize,
    pub intermediate: usize,
    pub dense_layers: usize,
    /// Sigmoid with a correction bias (V3), else softmax (V2).
    pub is_sigmoid: bool,
    /// Groups of experts, and how many of them a token may choose from.
    pub groups: (usize, usize),
    pub normalise: bool,
    pub scale: f32,
}

impl Shape {
    pub fn named(name: &str) -> Result<Self, String> {
        let known = || format!("--like {name}: known are {}", Self::names().join(", "));
        Self::all().into_iter().find(|shape| shape.name == name).ok_or_else(known)
    }

    pub fn names() -> Vec<&'static str> {
        Self::all().iter().map(|shape| shape.name).collect()
    }

    pub fn all() -> [Shape; 6] {
        [deepseek_v2_lite(), r1_3_layers(), qwen2_1_5b(), r1_distill_qwen_7b(), r1_distill_llama_8b(), smollm2_135m()]
    }
}

/// DeepSeek-V2-Lite, 15.7B.
fn deepseek_v2_lite() -> Shape {
    Shape {
        name: "deepseek-v2-lite",
        architecture: "deepseek2",
        pre_tokenizer: "deepseek-llm",
        vocab: 102_400,
        hidden: 2048,
        layers: 27,
        heads: 16,
        intermediate: 10_944,
        context_tokens: 163_840,
        rope_theta: 1e4,
        rms_norm_eps: 1e-6,
        is_tied: false,
        attention: Attention::Mla(Mla {
            q_lora_rank: None,
            kv_lora_rank: 512,
            nope_dim: 128,
            rope_dim: 64,
            v_dim: 128,
            yarn_log_multiplier: 0.0707,
        }),
        moe: Some(Moe {
            experts: 64,
            top_k: 6,
            shared_experts: 2,
            intermediate: 1408,
            dense_layers: 1,
            is_sigmoid: false,
            groups: (1, 1),
            normalise: false,
            scale: 1.0,
        }),
    }
}

/// DeepSeek-R1's dimensions with 1 dense and 2 MoE layers of half its experts, which fits in a small machine.
fn r1_3_layers() -> Shape {
    Shape {
        name: "r1-3-layers",
        architecture: "deepseek2",
        pre_tokenizer: "deepseek-v3",
        vocab: 129_280,
        hidden: 7168,
        layers: 3,
        heads: 128,
        intermediate: 18_432,
        context_tokens: 163_840,
        rope_theta: 1e4,
        rms_norm_eps: 1e-6,
        is_tied: false,
        attention: Attention::Mla(Mla {
            q_lora_rank: Some(1536),
            kv_lora_rank: 512,
            nope_dim: 128,
            rope_dim: 64,
            v_dim: 128,
            yarn_log_multiplier: 0.1,
        }),
        moe: Some(Moe {
            experts: 128,
            top_k: 8,
            shared_experts: 1,
            intermediate: 2048,
            dense_layers: 1,
            is_sigmoid: true,
            groups: (8, 4),
            normalise: true,
            scale: 2.5,
        }),
    }
}

/// Qwen2-1.5B; R1-Distill-Qwen-1.5B has the same but for a head of its own.
fn qwen2_1_5b() -> Shape {
    Shape {
        name: "qwen2-1.5b",
        architecture: "qwen2",
        pre_tokenizer: "qwen2",
        vocab: 151_936,
        hidden: 1536,
        layers: 28,
        heads: 12,
        intermediate: 8960,
        context_tokens: 131_072,
        rope_theta: 1e6,
        rms_norm_eps: 1e-6,
        is_tied: true,
        attention: Attention::Gqa { kv_heads: 2, head_dim: 128, has_qkv_bias: true },
        moe: None,
    }
}

fn r1_distill_qwen_7b() -> Shape {
    Shape {
        name: "r1-distill-qwen-7b",
        vocab: 152_064,
        hidden: 3584,
        heads: 28,
        intermediate: 18_944,
        rope_theta: 1e4,
        is_tied: false,
        attention: Attention::Gqa { kv_heads: 4, head_dim: 128, has_qkv_bias: true },
        ..qwen2_1_5b()
    }
}

fn r1_distill_llama_8b() -> Shape {
    Shape {
        name: "r1-distill-llama-8b",
        architecture: "llama",
        pre_tokenizer: "llama-bpe",
        vocab: 128_256,
        hidden: 4096,
        layers: 32,
        heads: 32,
        intermediate: 14_336,
        context_tokens: 131_072,
        rope_theta: 5e5,
        rms_norm_eps: 1e-5,
        is_tied: false,
        attention: Attention::Gqa { kv_heads: 8, head_dim: 128, has_qkv_bias: false },
        moe: None,
    }
}

/// SmolLM2-135M: rows of 576 values, which K formats cannot hold.
fn smollm2_135m() -> Shape {
    Shape {
        name: "smollm2-135m",
        pre_tokenizer: "smollm",
        vocab: 49_152,
        hidden: 576,
        layers: 30,
        heads: 9,
        intermediate: 1536,
        context_tokens: 8192,
        rope_theta: 1e5,
        is_tied: true,
        attention: Attention::Gqa { kv_heads: 3, head_dim: 64, has_qkv_bias: false },
        ..r1_distill_llama_8b()
    }
}
