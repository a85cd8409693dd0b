//! Qwen2 (Yang et al. 2024): R1-Distill-Qwen. Its forward is Llama's; the biases on q, k and v are part of `qkv`.

pub(crate) use super::llama::load;
