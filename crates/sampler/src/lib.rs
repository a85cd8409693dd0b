//! Logits to token: penalties, filters, a seeded draw; and log-probabilities.
//!
//! Must not know: models, devices, text, other sequences. A draw is a pure function of the logits, the parameters, the
//! tokens so far, the seed and the output index: the same everywhere, in any batch, on any machine (the exponential is
//! our own, [`exp`], because system libraries differ in the last bit). So a reply can be replayed.
//!
//! Start with [`Sampler::sample`]; [`Sampler::sample_top`] draws the same token from the largest logits of a row, where
//! a device has found them, or says that it must see the whole row. [`LogProbs`] reads log-probabilities off unchanged
//! logits.

#![forbid(unsafe_code)]

mod constraint;
mod exp;
mod filter;
mod logprobs;
mod mask;
mod sampler;
mod top;

pub use constraint::Constraint;
pub use logprobs::{LogProbs, logprob, top_logprobs};
pub use mask::TokenMask;
pub use sampler::{Draw, Sampled, Sampler};
pub use top::{TOP_MAX, Top, top_wanted};

use lingqu_types::TokenId;

/// Logits from which nothing can be drawn. A sick model or backend: the request fails, the server goes on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SamplerError {
    #[error("the logits are empty")]
    Empty,
    /// NaN or +inf. (-inf is a token that cannot come.)
    #[error("the logit of token {token} is {value}")]
    NotANumber { token: TokenId, value: String },
    #[error("no token can come: every logit is -inf or its token is not allowed")]
    NoCandidate,
    #[error("token {token} is not below the {logits} logits")]
    UnknownToken { token: TokenId, logits: usize },
}
