//! Architectures: configuration, weights, forward.
