//! Pure scheduling: what to run next.
