//! Dense gated feed-forward layers (SwiGLU, Shazeer 2020).

use lingqu_backend::FfnWeights;

use crate::ModelError;
use crate::loader::Loader;
use crate::names::Role;

/// The dense layer of layer `layer`.
pub(crate) fn load(loader: &mut Loader, layer: usize) -> Result<FfnWeights, ModelError> {
    let roles = [Role::FfnGate, Role::FfnUp, Role::FfnDown];
    let source = loader.ffn(roles, layer, loader.config.ffn_intermediate)?;
    Ok(loader.backend.upload_ffn(&source)?)
}
