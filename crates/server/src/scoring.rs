//! Log-probabilities of given token ids, straight from the model's forward.

use anyhow::Result;
use lingqu_backend::{Backend, KvStore};
use lingqu_model::Model;
use lingqu_types::request::TopLogprobs;
use lingqu_types::{Batch, BlockId, SequenceSlice, TokenId};

/// Scores of one sequence.
pub struct Scored {
    /// `logprobs[t] = ln p(ids[t] | ids[..t])`; `None` for the first.
    pub logprobs: Vec<Option<f32>>,
    /// The likeliest tokens after `ids[..=t]`, likeliest first.
    pub top: Vec<TopLogprobs>,
}

/// Scores `ids`, in chunks of `chunk_rows`, in blocks `0..` of a cache that nobody else uses.
pub fn score(
    model: &mut dyn Model,
    backend: &dyn Backend,
    kv: &mut KvStore,
    ids: &[TokenId],
    options: ScoreOptions,
) -> Result<Scored> {
    let vocab = model.config().vocab_size;
    let blocks: Vec<BlockId> = (0..ids.len().div_ceil(kv.spec().block_tokens)).map(|b| BlockId(b as u32)).collect();
    let mut scored = Scored { logprobs: vec![None], top: Vec::with_capacity(ids.len()) };
    let mut logits = vec![0.0; options.chunk_rows * vocab];
    for (chunk, tokens) in ids.chunks(options.chunk_rows).enumerate() {
        let context = chunk * options.chunk_rows;
        let rows = tokens.len();
        let batch = Batch {
            tokens: tokens.to_vec(),
            sequences: vec![SequenceSlice { rows: 0..rows, context, blocks: blocks.clone(), adapter: None }],
            logit_rows: (0..rows as u32).collect(),
        };
        let logits = &mut logits[..rows * vocab];
        backend.read(model.forward(&batch, kv)?, logits)?;
        for (i, row) in logits.chunks_exact(vocab).enumerate() {
            scored.top.push(lingqu_sampler::top_logprobs(row, options.top)?);
            if let Some(&next) = ids.get(context + i + 1) {
                scored.logprobs.push(Some(lingqu_sampler::logprob(row, next)?));
            }
        }
    }
    Ok(scored)
}

#[derive(Clone, Copy)]
pub struct ScoreOptions {
    /// Rows of one forward, all of whose logits are read.
    pub chunk_rows: usize,
    /// Likeliest tokens to report at each position.
    pub top: usize,
}
