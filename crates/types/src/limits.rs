//! The named bound of every queue and buffer. Each says what it protects.

use crate::sampling::InvalidParam;

/// Bounds of one engine. All are at least 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tokens (prompt + output) of one sequence.
    pub context_tokens_max: usize,
    /// Rows of one step: bounds activation buffers and the time of a step.
    pub batch_rows_max: usize,
    /// Prompt rows of a step that also decodes: bounds how long prompts hold up the tokens of others. 0: only
    /// `batch_rows_max` bounds them.
    pub prompt_rows_max_with_decodes: usize,
    /// Sequences running at once.
    pub sequences_max: usize,
    /// Requests waiting for admission; one more is answered RESOURCE_EXHAUSTED.
    pub queue_requests_max: usize,
    /// The same for the requests of one tenant that have not begun: one tenant's flood leaves room for others.
    pub queue_requests_per_tenant_max: usize,
    /// Steps after which a batch request that got no further goes with the interactive ones: it is not starved.
    pub batch_wait_steps_max: usize,
    /// Tenants without any request of which it is remembered what they have had.
    pub tenants_remembered_max: usize,
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
            batch_rows_max: 512.max(sequences_max),
            prompt_rows_max_with_decodes: 128,
            sequences_max,
            queue_requests_max: 1024,
            queue_requests_per_tenant_max: 512,
            batch_wait_steps_max: 256,
            tenants_remembered_max: 1024,
            block_tokens,
            blocks: tokens.div_ceil(block_tokens) + sequences_max,
            unread_tokens_max: 64,
            logit_rows_max: 64.max(sequences_max),
            top_logprobs_max: 64,
        }
    }

    /// Checks what the engine relies on: one sequence alone always fits the cache, and every running sequence fits a
    /// step with one row of logits.
    pub fn validate(&self) -> Result<(), InvalidParam> {
        let at_least = |field, value: usize, least: usize, why: &str| match value >= least {
            true => Ok(()),
            false => Err(InvalidParam { field, problem: format!("{value} is less than {least}: {why}") }),
        };
        let sequences = self.sequences_max;
        at_least("context_tokens_max", self.context_tokens_max, 1, "a sequence holds a token")?;
        at_least("sequences_max", sequences, 1, "one sequence runs")?;
        at_least("queue_requests_max", self.queue_requests_max, 1, "a request passes through the queue")?;
        let per_tenant = self.queue_requests_per_tenant_max;
        at_least("queue_requests_per_tenant_max", per_tenant, 1, "a request passes through the queue")?;
        at_least("tenants_remembered_max", self.tenants_remembered_max, 1, "a tenant comes back")?;
        at_least("unread_tokens_max", self.unread_tokens_max, 1, "a token passes through the stream")?;
        at_least("block_tokens", self.block_tokens, 1, "a block holds a position")?;
        at_least("batch_rows_max", self.batch_rows_max, sequences, "every running sequence takes a row")?;
        at_least("logit_rows_max", self.logit_rows_max, sequences, "every running sequence takes a row of logits")?;
        let blocks = self.context_tokens_max.div_ceil(self.block_tokens);
        at_least("blocks", self.blocks, blocks, "one sequence may fill its context")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_cannot_work_are_named() {
        let check = |field: &str, edit: fn(&mut Limits)| {
            for (context, sequences) in [(1, 1), (100, 3), (131_072, 64)] {
                assert_eq!(Limits::for_context(context, sequences).validate(), Ok(()));
            }
            let mut limits = Limits::for_context(100, 4);
            edit(&mut limits);
            assert_eq!(limits.validate().expect_err(field).field, field);
        };
        check("context_tokens_max", |l| l.context_tokens_max = 0);
        check("sequences_max", |l| l.sequences_max = 0);
        check("queue_requests_max", |l| l.queue_requests_max = 0);
        check("queue_requests_per_tenant_max", |l| l.queue_requests_per_tenant_max = 0);
        check("tenants_remembered_max", |l| l.tenants_remembered_max = 0);
        check("unread_tokens_max", |l| l.unread_tokens_max = 0);
        check("block_tokens", |l| l.block_tokens = 0);
        check("batch_rows_max", |l| l.batch_rows_max = 3);
        check("logit_rows_max", |l| l.logit_rows_max = 3);
        check("blocks", |l| l.blocks = 3);
    }
}
