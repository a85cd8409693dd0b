//! The named bound of every queue and buffer. Each says what it protects.

/// Bounds of one engine. All are at least 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tokens (prompt + output) of one sequence.
    pub context_tokens_max: usize,
    /// Rows of one step: bounds activation buffers and the time of a step.
    pub batch_rows_max: usize,
    /// Sequences running at once.
    pub sequences_max: usize,
    /// Requests waiting for admission; one more is answered RESOURCE_EXHAUSTED.
    pub queue_requests_max: usize,
    /// Positions in one KV block.
    pub block_tokens: usize,
    /// Blocks of the KV cache.
    pub blocks: usize,
    /// Tokens sent but not yet read by a client, per request; a slower reader is paused out of the batch.
    pub unread_tokens_max: usize,
    /// Logits rows read back in one step: bounds the memory of prompt log-probabilities.
    pub logit_rows_max: usize,
    /// Likeliest tokens that may be asked for at a position.
    pub top_logprobs_max: u32,
}

impl Limits {
    /// Bounds for a context of this many tokens and this many sequences at once.
    pub fn for_context(context_tokens_max: usize, sequences_max: usize) -> Self {
        let block_tokens = 32;
        // Every running sequence may reach a quarter of the context at once; one may always fill it.
        let tokens = context_tokens_max * sequences_max.div_ceil(4);
        Self {
            context_tokens_max,
            batch_rows_max: 512,
            sequences_max,
            queue_requests_max: 1024,
            block_tokens,
            blocks: tokens.div_ceil(block_tokens) + sequences_max,
            unread_tokens_max: 64,
            logit_rows_max: 64.max(sequences_max),
            top_logprobs_max: 64,
        }
    }
}
