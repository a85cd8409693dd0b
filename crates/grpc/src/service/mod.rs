//! One file per gRPC service.

pub mod inference;
pub mod models;
pub mod tokenizer;
