//! The CPU backend: SIMD kernels over quantised weights.
