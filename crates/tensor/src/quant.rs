//! Scalar decode of each format: the definition that every kernel is tested against.
