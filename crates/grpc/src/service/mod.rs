//! One file per gRPC service.

pub mod inference;
pub mod kserve;
pub mod models;
pub mod openengine;
pub mod tokenizer;
