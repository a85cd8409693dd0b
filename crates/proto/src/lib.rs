//! gRPC messages, clients and servers, generated from `/proto` at build time (no protoc needed).
//!
//! Knows nothing but the wire: validation and meaning live in `lingqu-grpc`. Start with the `.proto` files, whose
//! comments say units, defaults and ranges; each becomes a message or a `*_client` / `*_server` module of [`v1`].

#![forbid(unsafe_code)]

/// Package `lingqu.v1`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("lingqu.v1");

    /// The encoded `google.protobuf.FileDescriptorSet` of the package, comments included, for server reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/lingqu.v1.descriptors.bin"));
}
