//! Tiny models, fake clock, fake backend for tests.
