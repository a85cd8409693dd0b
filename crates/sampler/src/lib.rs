//! Logits to token: seeded sampling, penalties, log-probabilities.
