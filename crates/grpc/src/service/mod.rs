//! One file per gRPC service.

pub mod cluster;
pub mod inference;
pub mod kserve;
pub mod models;
pub mod openengine;
pub mod tokenizer;
