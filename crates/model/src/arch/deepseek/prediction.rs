//! The layer that predicts one token further (DeepSeek-V3 paper, section 2.2). Embedding and head are the model's own:
//! the release's copies of them beside this layer are the same numbers.

use lingqu_backend::{Buffer, Weight};

use super::Layer;
use crate::ModelError;
use crate::loader::Loader;
use crate::names::Role;

pub(super) struct Prediction {
    /// `[hidden]`
    pub embedding_norm: Weight,
    /// `[hidden]`
    pub state_norm: Weight,
    /// Normed embedding, then normed state, to what enters the layer. `[hidden, 2 * hidden]`
    pub projection: Weight,
    /// The last of the cache's layers.
    pub layer: Layer,
    /// `[hidden]`
    pub final_norm: Weight,
    /// Of the last forward's rows, what the head read or would have read. `[rows, hidden]`
    pub states: Buffer,
    /// The same of the last draft's logit rows. `[logit_rows, hidden]`
    pub drafted: Buffer,
    /// `[rows, 2 * hidden]`
    pub joined: Buffer,
}

pub(super) fn load(loader: &mut Loader, layer: Layer) -> Result<Prediction, ModelError> {
    let (hidden, rows_max, index) = (loader.config.hidden, loader.options.batch_rows_max, layer.index);
    Ok(Prediction {
        embedding_norm: loader.vector(Role::PredictionEmbeddingNorm, index, hidden)?,
        state_norm: loader.vector(Role::PredictionStateNorm, index, hidden)?,
        projection: loader.linear(Role::PredictionProjection, index, [hidden, 2 * hidden])?,
        final_norm: loader.vector(Role::PredictionNorm, index, hidden)?,
        states: loader.backend.alloc(rows_max, hidden)?,
        drafted: loader.backend.alloc(loader.options.logit_rows_max, hidden)?,
        joined: loader.backend.alloc(rows_max, 2 * hidden)?,
        layer,
    })
}
