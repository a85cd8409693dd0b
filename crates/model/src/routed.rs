//! Routed experts without the rest of their model, for a process that holds a part of them.

use std::sync::Arc;

use lingqu_backend::{Backend, ExpertWeights};

use crate::layers::moe;
use crate::loader::{self, Loader};
use crate::names::Role;
use crate::{LoadOptions, ModelError, Package};

const ROLES: [Role; 3] = [Role::ExpertGate, Role::ExpertUp, Role::ExpertDown];

/// Puts routed experts `experts` of layer `layer` on `backend`, in that order. Nothing else of the checkpoint is read.
/// The first prediction layer counts as a layer behind the model's own.
///
/// # Errors
/// Name the tensor of an expert that the model does not have, or that is misshapen or holds NaN, or say what the
/// backend cannot hold.
pub fn load_routed_experts(
    package: &Package,
    backend: &Arc<dyn Backend>,
    layer: usize,
    experts: &[usize],
) -> Result<ExpertWeights, ModelError> {
    let config = &package.config;
    let missing = |expert| {
        let name = loader::naming(&package.checkpoint).name(Role::ExpertGate, layer, expert);
        ModelError::MissingTensor { name }
    };
    let is_layer = layer < config.layers + config.prediction_layers.min(1) && config.is_moe_layer(layer);
    let Some(moe) = config.moe.as_ref().filter(|_| is_layer) else { return Err(missing(0)) };
    if let Some(&expert) = experts.iter().find(|&&expert| expert >= moe.route.experts) {
        return Err(missing(expert));
    }
    // Of the options only that of the prediction layer says anything here, and no buffers are made.
    let options = LoadOptions {
        batch_rows_max: 1,
        logit_rows_max: 1,
        context_tokens_max: 1,
        speculate: config.prediction_layers > 0,
    };
    let mut unseen = |_| {};
    let mut loader = Loader::new(&package.checkpoint, config, &options, Arc::clone(backend), &mut unseen);
    moe::load_experts(&mut loader, &**backend, moe, layer, experts.iter().copied())
}

/// Bytes in the checkpoint of one routed expert, by layer, for `layers` layers; 0 where a layer has none. All experts
/// of a layer count as the first.
pub fn routed_expert_bytes(package: &Package, layers: usize) -> Vec<u64> {
    let (config, checkpoint) = (&package.config, &package.checkpoint);
    let naming = loader::naming(checkpoint);
    let bytes = |layer: usize, role: Role| {
        let name = naming.name(role, layer, 0);
        let of = |name: &str| checkpoint.info(name).map_or(0, |info| info.bytes as u64);
        match (naming, &config.moe) {
            (crate::Naming::Gguf, Some(moe)) => of(&name) / moe.route.experts as u64, // all of a layer in one tensor
            _ => of(&name) + of(&format!("{name}_scale_inv")),
        }
    };
    let of_layer = |layer| ROLES.iter().map(|&role| bytes(layer, role)).sum();
    (0..layers).map(|layer| if config.is_moe_layer(layer) { of_layer(layer) } else { 0 }).collect()
}
