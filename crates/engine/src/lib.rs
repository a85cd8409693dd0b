//! The step loop over scheduler, KV cache, model and sampler.
//!
//! One thread owns the model, the cache and the scheduler, and runs step after step ([`step`]). Clients hold an
//! [`EngineHandle`] on the other side of a bounded mailbox: they submit a request and read its [`TokenStream`], which
//! always ends with [`TokenEvent::Finished`] or [`TokenEvent::Failed`]. The loop never waits for a client.
//!
//! It knows no wire format, no text and no file; [`text`] is the bridge from tokens to text that all front ends share.
//! Start with [`step`], then [`handle`].

#![forbid(unsafe_code)]

mod draw;
mod error;
pub mod handle;
mod mailbox;
mod request;
pub mod step;
mod stream;
pub mod text;

use lingqu_backend::KvPrecision;
use lingqu_types::{Limits, TokenId};

pub use error::{EngineError, SubmitError};
pub use handle::{DrainReport, Engine, EngineHandle, EngineLoad};
pub use stream::{Finished, PromptLogprobs, TokenEvent, TokenStream};

/// What one engine is given besides its model.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    pub limits: Limits,
    /// Tokens that end a generation, unless the request says `ignore_eos`.
    pub eos_token_ids: Vec<TokenId>,
    /// How finely keys and values are kept.
    pub kv_precision: KvPrecision,
}

impl EngineConfig {
    /// What most engines are given.
    pub fn new(limits: Limits, eos_token_ids: Vec<TokenId>) -> Self {
        Self { limits, eos_token_ids, kv_precision: KvPrecision::Full }
    }
}
