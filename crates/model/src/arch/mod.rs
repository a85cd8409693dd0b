//! One file per architecture, each with one `forward` that reads like the paper.
//!
//! They share a shape: the residual stream `x` `[rows, hidden]` passes the layers; in the last one, once its keys and
//! values are in the cache, only the rows whose logits are wanted go on. Rows do not look at each other outside of
//! attention, so this changes no bit of what remains.

pub(crate) mod deepseek;
pub(crate) mod llama;
pub(crate) mod qwen2;
