//! What a model is and needs, as plain data for `lingqu inspect`.

use std::collections::BTreeMap;

use crate::loader::naming;
use crate::{ModelConfig, Package};

/// Counts of one model, from headers alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    pub config: ModelConfig,
    /// Sorted by group, then by format.
    pub weights: Vec<WeightGroup>,
    pub weight_bytes: u64,
    pub parameters: u64,
    /// Parameters that one token passes: all but the experts it is not sent to, and of the embedding one row.
    pub active_parameters: u64,
    /// Values that one token takes in the KV cache, over all layers.
    pub kv_values_per_token: u64,
}

/// The weights of one purpose in one format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightGroup {
    /// `embedding`, `attention`, `routed experts`, …; `unused` for tensors that take no part in a forward.
    pub group: &'static str,
    /// As the file calls it: `Q4_K`, `BF16`, or a type that is not supported.
    pub format: String,
    pub tensors: u64,
    pub parameters: u64,
    pub bytes: u64,
}

impl Summary {
    /// Bytes that one token takes in a KV cache of `value_bytes` each.
    pub fn kv_bytes_per_token(&self, value_bytes: u64) -> u64 {
        self.kv_values_per_token * value_bytes
    }
}

/// Counts the weights of `package` by purpose and format.
pub fn summary(package: &Package) -> Summary {
    let (config, naming) = (&package.config, naming(&package.checkpoint));
    let scales_of = |name: &str| name.strip_suffix("_scale_inv").map(str::to_string);
    let mut groups: BTreeMap<(&'static str, String), WeightGroup> = BTreeMap::new();
    for info in package.checkpoint.tensors() {
        // FP8 scales count as bytes of their weight, not as parameters.
        let scaled = scales_of(&info.name).and_then(|name| package.checkpoint.info(&name));
        let weight = scaled.unwrap_or(info);
        let group = match naming.place(&weight.name) {
            Some(place) if place.layer.is_none_or(|layer| layer < config.layers) => place.role.group(),
            _ => "unused",
        };
        let format = weight.format.map_or(weight.type_name.as_ref(), |f| f.name()).to_string();
        let entry = groups.entry((group, format.clone())).or_insert(WeightGroup {
            group,
            format,
            tensors: 0,
            parameters: 0,
            bytes: 0,
        });
        entry.bytes += info.bytes as u64;
        if scaled.is_none() {
            entry.tensors += 1;
            entry.parameters += info.values() as u64;
        }
    }
    let weights: Vec<WeightGroup> = groups.into_values().collect();
    let used = || weights.iter().filter(|w| w.group != "unused");
    let total = |of: &str| used().filter(|w| w.group == of).map(|w| w.parameters).sum::<u64>();
    let parameters = used().map(|w| w.parameters).sum::<u64>();
    let mut active = parameters;
    if let Some(moe) = &config.moe {
        let routed = total("routed experts");
        active -= routed - routed / moe.route.experts as u64 * moe.route.top_k as u64;
    }
    if !config.tied_embeddings {
        active -= total("embedding").saturating_sub(config.hidden as u64);
    }
    Summary {
        config: config.clone(),
        weight_bytes: weights.iter().map(|w| w.bytes).sum(),
        weights,
        parameters,
        active_parameters: active,
        kv_values_per_token: (config.kv_entry().values() * config.layers) as u64,
    }
}
