//! Models: from the files of a checkpoint to logits.
//!
//! Reads configurations, finds and uploads weights, and runs one forward for everything that a [`Batch`] holds. Must
//! not know: requests, sampling, schedules, wire formats, or which device does the work: it sees only
//! [`lingqu_backend::Backend`] and, for routed experts wherever they live, [`lingqu_backend::Exchange`].
//!
//! Start with [`Package::open`] and [`load`]; then `arch/deepseek.rs`, whose `forward` reads like the paper;
//! `registry.rs` has one row for each architecture, `config/` the two file formats that describe them, `names.rs` what
//! those call each weight, `adapter/` the LoRA adapters that change a model for some of its rows.

#![forbid(unsafe_code)]

mod adapter;
mod arch;
mod config;
mod draft;
mod error;
mod layers;
mod loader;
mod names;
mod package;
mod registry;
mod routed;
mod summary;

use std::sync::Arc;

use lingqu_backend::{Backend, Exchange, KvEntry, KvStore, View};
use lingqu_types::{AdapterId, Batch};

pub use adapter::{ADAPTERS_MAX, Adapter};
pub use config::{AttentionConfig, GqaConfig, MlaConfig, ModelConfig, MoeConfig, RopeConfig, RopeScaling};
pub use draft::{DraftBatch, States};
pub use error::ModelError;
pub use loader::LoadProgress;
pub use names::{Naming, Place, Role};
pub use package::{GenerationDefaults, Package};
pub use routed::{load_routed_experts, routed_expert_bytes};
pub use summary::{Summary, WeightGroup, summary};

/// Sizes of the buffers that are made once, at load. All at least 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Rows of one forward at most.
    pub batch_rows_max: usize,
    /// Rows of logits of one forward at most.
    pub logit_rows_max: usize,
    /// Positions that a sequence may reach.
    pub context_tokens_max: usize,
    /// Load the model's prediction layer too, so that [`Model::draft`] can be asked. An error where it has none.
    pub speculate: bool,
}

/// A model on a device.
pub trait Model: Send {
    fn config(&self) -> &ModelConfig;

    /// Computes the rows of `batch`, appends their keys and values to `kv`, and returns the logits of the rows that
    /// the batch asks for: `[logit_rows, vocab]`, on the device, until the next forward.
    ///
    /// A row's logits do not depend on what else is in the batch, nor on how its prompt was cut into batches: bit for
    /// bit. The batch must hold [`Batch::validate`]'s invariants, known token ids and no more rows than
    /// [`LoadOptions`] said: breaking that is a bug of ours and panics.
    fn forward(&mut self, batch: &Batch, kv: &mut KvStore) -> Result<View<'_>, lingqu_backend::BackendError>;

    /// Whether a prediction layer is loaded.
    fn predicts(&self) -> bool {
        false
    }

    /// Puts rows into the prediction layer's own part of the cache and returns the logits of the tokens after those
    /// that `rows` asks for: `[logit_rows, vocab]`, on the device, until the next forward or draft. Only of models that
    /// [predict](Model::predicts), after a forward; the bounds and promises are those of [`Model::forward`].
    fn draft(&mut self, rows: &DraftBatch, kv: &mut KvStore) -> Result<View<'_>, lingqu_backend::BackendError> {
        let (_, _) = (rows, kv);
        unreachable!("drafts are asked of models that predict")
    }

    /// What one position of the KV cache holds, per layer.
    fn kv_entry(&self) -> KvEntry {
        self.config().kv_entry()
    }

    /// Layers of the KV cache, the prediction layer's among them.
    fn layers(&self) -> usize {
        self.config().layers
    }

    /// Checks a LoRA adapter against this model and uploads it. Sequences that name it get its answers, those that do
    /// not get the bits that they had before.
    ///
    /// # Errors
    /// Name what in the adapter does not fit this model, or what the backend cannot hold. The model stays as it was.
    fn load_adapter(&mut self, _adapter: &Adapter) -> Result<AdapterId, ModelError> {
        Err(ModelError::NoAdapters { model: self.config().name.clone() })
    }

    /// Names of the adapters that were loaded, in the order of their [`AdapterId`].
    fn adapters(&self) -> &[Arc<str>] {
        &[]
    }
}

/// Uploads the weights of `package` and makes the model's buffers. Routed experts are put on `backend` too.
///
/// # Errors
/// Name the tensor that is missing, misshapen or holds NaN, or what the backend cannot hold.
pub fn load(
    package: &Package,
    backend: Arc<dyn Backend>,
    options: &LoadOptions,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Box<dyn Model>, ModelError> {
    load_with_experts(package, backend, options, Experts::Here, progress)
}

/// Where the routed experts of a mixture live. Models without any do not ask.
pub enum Experts {
    /// On the model's own backend.
    Here,
    /// On another backend of this process; they are loaded there.
    On(Arc<dyn Backend>),
    /// Somewhere else, behind an exchange; they are not loaded here.
    Behind(Arc<dyn Exchange>),
}

/// [`load`] with a place of their own for the routed experts.
pub fn load_with_experts(
    package: &Package,
    backend: Arc<dyn Backend>,
    options: &LoadOptions,
    experts: Experts,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Box<dyn Model>, ModelError> {
    let architecture = registry::by_name(package.config.architecture);
    if options.speculate && package.config.prediction_layers == 0 {
        return Err(ModelError::NoPredictionLayer { name: package.config.name.clone() });
    }
    let mut loader = loader::Loader::new(&package.checkpoint, &package.config, options, backend, progress);
    let model = (architecture.load)(&mut loader, experts)?;
    loader.finish();
    Ok(model)
}
