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
mod speculate;
pub mod step;
mod stream;
pub mod text;

use std::collections::BTreeMap;
use std::sync::Arc;

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
    /// Guess at tokens to come and verify several in one step. Only with a model whose prediction layer is loaded.
    pub speculation: Option<Speculation>,
    pub prefix_sharing: PrefixSharing,
    /// Shares of tenants, where they have more to do than there is room for; 1 for those that are not named.
    pub tenant_weights: BTreeMap<Arc<str>, u32>,
}

/// How far to guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speculation {
    /// Tokens guessed after each one that is known, at least 1.
    pub drafts: usize,
    /// With more sequences than this decoding at once nothing is guessed: their rows fill a step by themselves.
    pub sequences_max: usize,
}

impl Speculation {
    /// Unless said otherwise: few enough that a step is bound by reading weights. Not measured yet.
    pub const SEQUENCES_MAX: usize = 4;

    pub fn new(drafts: usize) -> Self {
        Self { drafts, sequences_max: Self::SEQUENCES_MAX }
    }
}

/// Who may use blocks of the cache that others computed. The answers are the same; how soon they come may tell one
/// tenant what another one asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PrefixSharing {
    #[default]
    All,
    /// Requests of one tenant.
    Tenant,
    Off,
}

impl EngineConfig {
    /// What most engines are given.
    pub fn new(limits: Limits, eos_token_ids: Vec<TokenId>) -> Self {
        Self {
            limits,
            eos_token_ids,
            kv_precision: KvPrecision::Full,
            speculation: None,
            prefix_sharing: PrefixSharing::default(),
            tenant_weights: BTreeMap::new(),
        }
    }
}
