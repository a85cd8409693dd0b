//! LoRA adapters (Hu et al. 2021) as PEFT saves them: a folder with `adapter_config.json` and
//! `adapter_model.safetensors`.
//!
//! [`Adapter::open`] checks the files by themselves, [`site`] finds each change its place in the base model, [`loaded`]
//! holds the changes on the device and adds them in a forward.

mod config;
pub(crate) mod loaded;
pub(crate) mod site;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use lingqu_backend::{LowRankSource, RANK_MAX};
use lingqu_checkpoint::Checkpoint;
use lingqu_tensor::{Bytes, HostTensor};

use crate::ModelError;
use crate::names::{Naming, Role};
use config::AdapterConfig;

/// Adapters that one model may be given.
pub const ADAPTERS_MAX: usize = 64;

const CONFIG: &str = "adapter_config.json";
/// What PEFT puts before the base model's own names.
const PREFIX: &str = "base_model.model.";
/// The ends of the two factors' names.
const FACTORS: [&str; 2] = [".lora_A.weight", ".lora_B.weight"];

/// An adapter whose files were read and checked, but not yet against a base model. Its factors are not copied.
#[derive(Debug)]
pub struct Adapter {
    /// What requests call it.
    pub name: Arc<str>,
    /// Its folder, as errors call it.
    label: String,
    changes: Vec<Change>,
}

/// A change of one matrix of the base: `W + scale * B A`.
#[derive(Debug)]
struct Change {
    /// As the base names it: `model.layers.0.self_attn.q_proj`.
    module: String,
    role: Role,
    layer: usize,
    /// `[rank, in]`
    a: HostTensor,
    /// `[out, rank]`
    b: HostTensor,
    scale: f32,
}

impl Adapter {
    /// Opens a PEFT folder.
    ///
    /// # Errors
    /// Name the file, and the field or tensor, that is missing, wrong or not supported.
    pub fn open(name: &str, path: &Path) -> Result<Self, ModelError> {
        Self::from_checkpoint(name, Checkpoint::open_adapter(path)?)
    }

    /// The same from files in memory, `(name, bytes)`.
    pub fn in_memory(name: &str, files: Vec<(String, Bytes)>) -> Result<Self, ModelError> {
        Self::from_checkpoint(name, Checkpoint::adapter_in_memory(files)?)
    }

    fn from_checkpoint(name: &str, files: Checkpoint) -> Result<Self, ModelError> {
        let label = files.label().to_string();
        let text = files.text(CONFIG)?.ok_or_else(|| ModelError::Config {
            file: format!("{label}/{CONFIG}"),
            field: "JSON".into(),
            problem: "is missing".into(),
        })?;
        let config = AdapterConfig::parse(&format!("{label}/{CONFIG}"), text.as_slice())?;
        let mut adapter = Self { name: name.into(), label, changes: Vec::new() };
        for (module, factors) in adapter.modules(&files)? {
            let change = adapter.change(&files, &config, module, factors)?;
            adapter.changes.push(change);
        }
        match adapter.changes.is_empty() {
            true => adapter.fail(CONFIG, "changes nothing: the file holds no tensor"),
            false => Ok(adapter),
        }
    }

    /// The two factors' names of each module of the base.
    fn modules(&self, files: &Checkpoint) -> Result<BTreeMap<String, [Option<String>; 2]>, ModelError> {
        let mut modules: BTreeMap<String, [Option<String>; 2]> = BTreeMap::new();
        for tensor in files.tensors() {
            let name = &*tensor.name;
            let part = name.strip_prefix(PREFIX).and_then(|rest| {
                let of = |i: usize| Some((i, rest.strip_suffix(FACTORS[i])?));
                of(0).or_else(|| of(1))
            });
            let Some((i, module)) = part else {
                let problem = "is no factor of a linear layer (base_model.model.MODULE.lora_A.weight or lora_B.weight)";
                return self.fail(name, problem);
            };
            modules.entry(module.into()).or_default()[i] = Some(name.into());
        }
        Ok(modules)
    }

    /// Reads and checks one module's change.
    fn change(
        &self,
        files: &Checkpoint,
        config: &AdapterConfig,
        module: String,
        factors: [Option<String>; 2],
    ) -> Result<Change, ModelError> {
        let [Some(a), Some(b)] = factors else {
            return self.fail(&module, "has one of its two factors lora_A and lora_B, but not the other");
        };
        let place = Naming::HuggingFace.place(&format!("{module}.weight"));
        let Some((role, layer)) = place.and_then(|place| Some((place.role, place.layer?))) else {
            return self.fail(&a, "changes no linear layer of a model that is known here");
        };
        let read = |name: &str| -> Result<HostTensor, ModelError> {
            let tensor = files.tensor(name)?.expect("it was listed");
            if !LowRankSource::FORMATS.contains(&tensor.format) {
                return self.fail(name, &format!("is stored as {}, not as F32, F16 or BF16", tensor.format));
            }
            tensor.check_finite_scales()?;
            Ok(tensor)
        };
        let [a, b] = [read(&a)?, read(&b)?];
        let (rank, scale) = config.of(&module)?;
        for (tensor, found) in [(&a, a.rows), (&b, b.cols)] {
            if found != rank {
                let problem = format!("is of rank {found}, but {CONFIG} says {rank}");
                return self.fail(&tensor.name, &problem);
            }
        }
        debug_assert!((1..=RANK_MAX).contains(&rank));
        Ok(Change { module, role, layer, a, b, scale })
    }

    fn fail<T>(&self, what: &str, problem: &str) -> Result<T, ModelError> {
        let shown = what.chars().take(200).flat_map(char::escape_debug).collect();
        Err(ModelError::Adapter { file: self.label.clone(), what: shown, problem: problem.into() })
    }
}
