//! A model that recites.

use lingqu_backend::{Backend, BackendError, Buffer, KvStore, View};
use lingqu_model::{Model, ModelConfig};
use lingqu_types::{Batch, Limits, TokenId};

use crate::toy::{TOY_VOCAB, ToyBackend, ToyFaults, ToyModel};

/// Recites a text: after position `p` the likeliest token, by far, is the text's token at `p + 1`.
pub struct Reciting {
    config: ModelConfig,
    script: Vec<TokenId>,
    eos: TokenId,
    /// `[logit_rows_max, vocab]`
    logits: Buffer,
}

impl Reciting {
    /// Past the script's end: `eos`. Ids are below [`TOY_VOCAB`]; the device is a [`ToyBackend`].
    pub fn new(script: Vec<TokenId>, eos: TokenId, limits: &Limits) -> Self {
        let (toy, _) = ToyModel::new(limits, ToyFaults::default());
        let logits = ToyBackend::default().alloc(limits.logit_rows_max, TOY_VOCAB).expect("a vector");
        Self { config: toy.config().clone(), script, eos, logits }
    }
}

impl Model for Reciting {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn forward(&mut self, batch: &Batch, _kv: &mut KvStore) -> Result<View<'_>, BackendError> {
        let positions = batch.positions();
        self.logits.set_rows(batch.logit_rows.len());
        let rows = self.logits.storage_mut::<Vec<f32>>().chunks_exact_mut(TOY_VOCAB); // each [vocab]
        for (&row, out) in batch.logit_rows.iter().zip(rows) {
            let next = positions[row as usize] as usize + 1;
            out.fill(-100.0);
            out[self.script.get(next).copied().unwrap_or(self.eos) as usize] = 100.0;
        }
        Ok(self.logits.view())
    }
}
