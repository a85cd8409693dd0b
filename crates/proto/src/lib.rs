//! gRPC types generated from /proto.
