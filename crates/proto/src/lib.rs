//! gRPC messages, clients and servers, generated from `/proto` at build time (no protoc needed).
//!
//! Knows nothing but the wire: validation and meaning live in `lingqu-grpc`. Start with the `.proto` files, whose
//! comments say units, defaults and ranges; each becomes a message or a `*_client` / `*_server` module of its package:
//! [`v1`] is our own, [`inference`] and [`openengine`] are published by others and stated here as they are there.

#![forbid(unsafe_code)]

/// The encoded `google.protobuf.FileDescriptorSet` of all packages, comments included, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Package `lingqu.v1`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("lingqu.v1");
}

/// Package `inference`: the KServe v2 protocol, with what Triton's clients ask beyond it.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod inference {
    tonic::include_proto!("inference");
}

/// Package `openengine.v1`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod openengine {
    tonic::include_proto!("openengine.v1");
}
