//! From the tensors of a file to weights on a device: finds each by its role, checks its shape and numbers, uploads
//! it, and says how far it has come.

use std::sync::Arc;

use lingqu_backend::{Backend, FfnSource, LinearSource, Weight};
use lingqu_checkpoint::{Checkpoint, Source};
use lingqu_tensor::HostTensor;

use crate::config::ModelConfig;
use crate::names::{Naming, Role};
use crate::{LoadOptions, ModelError};

/// How far loading has come. The two become equal at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadProgress {
    pub bytes_done: u64,
    pub bytes_total: u64,
}

/// The language of the files of a checkpoint.
pub(crate) fn naming(checkpoint: &Checkpoint) -> Naming {
    match checkpoint.source() {
        Source::HuggingFace => Naming::HuggingFace,
        Source::Gguf => Naming::Gguf,
    }
}

pub(crate) struct Loader<'a> {
    pub config: &'a ModelConfig,
    pub options: &'a LoadOptions,
    pub backend: Arc<dyn Backend>,
    checkpoint: &'a Checkpoint,
    naming: Naming,
    progress: &'a mut dyn FnMut(LoadProgress),
    state: LoadProgress,
}

impl<'a> Loader<'a> {
    pub fn new(
        checkpoint: &'a Checkpoint,
        config: &'a ModelConfig,
        options: &'a LoadOptions,
        backend: Arc<dyn Backend>,
        progress: &'a mut dyn FnMut(LoadProgress),
    ) -> Self {
        let naming = naming(checkpoint);
        let layers = config.layers + usize::from(options.speculate); // of prediction layers the first alone
        let used = |name: &str| naming.place(name).is_some_and(|place| place.layer.is_none_or(|layer| layer < layers));
        let bytes_total = checkpoint.tensors().filter(|t| used(&t.name)).map(|t| t.bytes as u64).sum();
        let state = LoadProgress { bytes_done: 0, bytes_total };
        Self { config, options, backend, checkpoint, naming, progress, state }
    }

    /// Prediction layers to load: the first of them or none.
    pub fn prediction_layers(&self) -> usize {
        usize::from(self.options.speculate)
    }

    /// Whether the file holds `role` in layer `layer`.
    pub fn has(&self, role: Role, layer: usize) -> bool {
        self.checkpoint.info(&self.naming.name(role, layer, 0)).is_some()
    }

    fn missing<T>(&self, name: String) -> Result<T, ModelError> {
        Err(ModelError::MissingTensor { name })
    }

    /// Counts a tensor as read, after a look at its numbers, if the backend has none: one NaN would spoil every answer
    /// without a trace.
    fn accept(&mut self, tensor: HostTensor, shape: [usize; 2]) -> Result<HostTensor, ModelError> {
        if [tensor.rows, tensor.cols] != shape {
            let (name, found) = (tensor.name, vec![tensor.rows, tensor.cols]);
            return Err(ModelError::TensorShape { name, found, expected: shape.into() });
        }
        if !self.backend.capabilities().checks_numbers {
            tensor.check_finite_scales()?;
        }
        let bytes = self.state.bytes_done + tensor.data.len() as u64;
        self.state.bytes_done = bytes.min(self.state.bytes_total);
        Ok(tensor)
    }

    fn report(&mut self) {
        (self.progress)(self.state);
    }

    /// A matrix `[rows, cols]`, or a vector `[1, len]`.
    pub fn tensor(&mut self, role: Role, layer: usize, shape: [usize; 2]) -> Result<HostTensor, ModelError> {
        let name = self.naming.name(role, layer, 0);
        match self.checkpoint.tensor(&name)? {
            Some(tensor) => self.accept(tensor, shape),
            None => self.missing(name),
        }
    }

    /// The matrix `index` of a role whose tensor GGUF stacks: `[count, rows, cols]`.
    pub fn stacked(
        &mut self,
        role: Role,
        layer: usize,
        index: usize,
        shape: [usize; 3],
    ) -> Result<HostTensor, ModelError> {
        let [count, rows, cols] = shape;
        let name = self.naming.name(role, layer, index);
        if self.naming == Naming::HuggingFace {
            return match self.checkpoint.tensor(&name)? {
                Some(tensor) => self.accept(tensor, [rows, cols]),
                None => self.missing(name),
            };
        }
        let Some(info) = self.checkpoint.info(&name) else { return self.missing(name) };
        if info.shape.len() == 3 && info.shape[0] != count {
            return Err(ModelError::TensorShape { name, found: info.shape.clone(), expected: shape.into() });
        }
        match self.checkpoint.tensor_slice(&name, index)? {
            Some(tensor) => self.accept(tensor, [rows, cols]),
            None => self.missing(name),
        }
    }

    /// A norm's weight or another vector of `len` values, kept in f32.
    pub fn vector(&mut self, role: Role, layer: usize, len: usize) -> Result<Weight, ModelError> {
        let tensor = self.tensor(role, layer, [1, len])?;
        let weight = self.backend.upload_table(&tensor)?;
        self.report();
        Ok(weight)
    }

    /// One matrix `[rows, cols]` without bias.
    pub fn linear(&mut self, role: Role, layer: usize, shape: [usize; 2]) -> Result<Weight, ModelError> {
        let tensor = self.tensor(role, layer, shape)?;
        self.upload_linear(&[tensor], &[])
    }

    pub fn upload_linear(&mut self, parts: &[HostTensor], biases: &[HostTensor]) -> Result<Weight, ModelError> {
        let weight = self.backend.upload_linear(LinearSource { parts, biases })?;
        self.report();
        Ok(weight)
    }

    pub fn upload_heads(&mut self, heads: &[HostTensor]) -> Result<Weight, ModelError> {
        let weight = self.backend.upload_heads(heads)?;
        self.report();
        Ok(weight)
    }

    /// Gate, up and down of a feed-forward layer of `intermediate` values.
    pub fn ffn(&mut self, roles: [Role; 3], layer: usize, intermediate: usize) -> Result<FfnSource, ModelError> {
        let hidden = self.config.hidden;
        let [gate, up, down] = roles;
        Ok(FfnSource {
            gate: self.tensor(gate, layer, [intermediate, hidden])?,
            up: self.tensor(up, layer, [intermediate, hidden])?,
            down: self.tensor(down, layer, [hidden, intermediate])?,
        })
    }

    /// The same of routed expert `expert` out of `experts`.
    pub fn expert(
        &mut self,
        layer: usize,
        expert: usize,
        [experts, intermediate]: [usize; 2],
    ) -> Result<FfnSource, ModelError> {
        let hidden = self.config.hidden;
        Ok(FfnSource {
            gate: self.stacked(Role::ExpertGate, layer, expert, [experts, intermediate, hidden])?,
            up: self.stacked(Role::ExpertUp, layer, expert, [experts, intermediate, hidden])?,
            down: self.stacked(Role::ExpertDown, layer, expert, [experts, hidden, intermediate])?,
        })
    }

    /// Says that all is loaded.
    pub fn finish(&mut self) {
        self.state.bytes_done = self.state.bytes_total;
        self.report();
    }
}
