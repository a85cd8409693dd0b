//! Mixture of experts: a router, experts that every token passes, and experts that are chosen.

use lingqu_backend::{Backend, ExpertWeights, FfnSource, FfnWeights, Weight};

use crate::ModelError;
use crate::config::MoeConfig;
use crate::loader::Loader;
use crate::names::Role;

/// What lives beside the attention; the routed experts are behind the exchange.
pub(crate) struct MoeWeights {
    /// `[experts, hidden]`
    pub router: Weight,
    /// `[experts]`, added to the scores when experts are chosen.
    pub correction_bias: Option<Weight>,
    /// All shared experts side by side: `shared_experts * intermediate` wide.
    pub shared: Option<FfnWeights>,
}

pub(crate) fn load(loader: &mut Loader, moe: &MoeConfig, layer: usize) -> Result<MoeWeights, ModelError> {
    let experts = moe.route.experts;
    let router = loader.linear(Role::Router, layer, [experts, loader.config.hidden])?;
    let correction_bias = match moe.correction_bias {
        true => Some(loader.vector(Role::RouterBias, layer, experts)?),
        false => None,
    };
    let shared = match moe.shared_experts {
        0 => None,
        shared => {
            let roles = [Role::SharedGate, Role::SharedUp, Role::SharedDown];
            let source = loader.ffn(roles, layer, shared * moe.intermediate)?;
            Some(loader.backend.upload_ffn(&source)?)
        }
    };
    Ok(MoeWeights { router, correction_bias, shared })
}

/// Routed experts of a layer, in the given order, on `host`.
pub(crate) fn load_experts(
    loader: &mut Loader,
    host: &dyn Backend,
    moe: &MoeConfig,
    layer: usize,
    experts: impl IntoIterator<Item = usize>,
) -> Result<ExpertWeights, ModelError> {
    let shape = [moe.route.experts, moe.intermediate];
    let mut sources: Vec<FfnSource> = Vec::new();
    for expert in experts {
        sources.push(loader.expert(layer, expert, shape)?);
    }
    Ok(host.upload_experts(&sources)?)
}
