//! Paged KV cache: blocks and block tables.
