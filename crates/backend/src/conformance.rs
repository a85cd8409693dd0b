//! The conformance suite: any backend against the reference on generated shapes.
