//! Weights and buffers of a decoder of grouped-query attention and dense feed-forward layers: Llama's shape, which
//! Qwen2 shares. What an architecture does with them stands in its `forward`.

use std::sync::Arc;

use lingqu_backend::{Backend, FfnWeights, Weight};

use super::attention_gqa::{self, GqaWeights};
use super::ends::{self, Ends};
use super::ffn;
use super::workspace::{GqaBuffers, Logits, Stream};
use crate::ModelError;
use crate::adapter::loaded::Adapters;
use crate::config::ModelConfig;
use crate::loader::Loader;
use crate::names::Role;

pub(crate) struct DenseGqa {
    pub config: ModelConfig,
    pub backend: Arc<dyn Backend>,
    pub ends: Ends,
    pub rope: Weight,
    pub layers: Vec<Layer>,
    pub stream: Stream,
    pub logits: Logits,
    pub buffers: GqaBuffers,
    pub adapters: Adapters,
}

pub(crate) struct Layer {
    pub attention_norm: Weight,
    pub attention: GqaWeights,
    pub ffn_norm: Weight,
    pub ffn: FfnWeights,
}

pub(crate) fn load(loader: &mut Loader) -> Result<DenseGqa, ModelError> {
    let config = loader.config.clone();
    let backend = loader.backend.clone();
    let mut layers = Vec::new();
    for layer in 0..config.layers {
        layers.push(Layer {
            attention_norm: loader.vector(Role::AttentionNorm, layer, config.hidden)?,
            attention: attention_gqa::load(loader, layer)?,
            ffn_norm: loader.vector(Role::FfnNorm, layer, config.hidden)?,
            ffn: ffn::load(loader, layer)?,
        });
    }
    Ok(DenseGqa {
        ends: ends::load(loader)?,
        rope: attention_gqa::load_rope(loader)?,
        layers,
        stream: Stream::new(&*backend, &config, loader.options.batch_rows_max)?,
        logits: Logits::new(&*backend, &config, loader.options)?,
        buffers: GqaBuffers::new(&*backend, config.gqa(), loader.options.batch_rows_max)?,
        adapters: Adapters::default(),
        backend,
        config,
    })
}
