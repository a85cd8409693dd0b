//! What a model's own prediction layer is asked: guesses at tokens to come, to be verified by the next forward.
//!
//! The layer joins the state of one token with the token after it and says the one after that (DeepSeek-V3 paper,
//! section 2.2). It attends over entries of its own, in a layer of the KV cache behind the model's. The entry made of
//! the state of token `i` and of token `i + 1` lies at position `i + 1`, so that it depends on no token behind its
//! position, like every other entry: whoever shares a block of the cache shares these too. At the first position, and
//! wherever the state before is not at hand, zeros stand for it.

use lingqu_types::Batch;

/// Rows of the prediction layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DraftBatch {
    /// Tokens at their own positions. `logit_rows`: the rows whose next token is wanted; of the others only the entries
    /// in the cache are.
    pub batch: Batch,
    /// Of the token before each row.
    pub states: States,
}

/// Where states come from. `[rows]` of each
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum States {
    /// Zeros.
    #[default]
    Unknown,
    /// These rows of the last forward's batch.
    OfForward(Vec<u32>),
    /// These of the logit rows of the last draft: the layer goes on from its own guess.
    OfDraft(Vec<u32>),
}
