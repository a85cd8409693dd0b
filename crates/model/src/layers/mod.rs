//! Parts that architectures are made of: their weights, and how those get from the file to the device.

pub(crate) mod attention_gqa;
pub(crate) mod dense_gqa;
pub(crate) mod ends;
pub(crate) mod ffn;
pub(crate) mod mla;
pub(crate) mod moe;
pub(crate) mod rope;
pub(crate) mod workspace;
