//! Grouped-query attention: weights and loading. The arithmetic stands in each architecture's `forward`.

use lingqu_backend::Weight;
use lingqu_tensor::HostTensor;

use super::rope;
use crate::ModelError;
use crate::loader::Loader;
use crate::names::Role;

pub(crate) struct GqaWeights {
    /// `[(heads + 2 * kv_heads) * head_dim, hidden]`: queries, keys and values share their input.
    pub qkv: Weight,
    /// `[hidden, heads * head_dim]`
    pub output: Weight,
}

pub(crate) fn load(loader: &mut Loader, layer: usize) -> Result<GqaWeights, ModelError> {
    let gqa = loader.config.gqa();
    let hidden = loader.config.hidden;
    let (q_width, kv_width) = (gqa.heads * gqa.head_dim, gqa.kv_heads * gqa.head_dim);
    let weights = [(Role::Query, q_width), (Role::Key, kv_width), (Role::Value, kv_width)];
    let biases = [(Role::QueryBias, q_width), (Role::KeyBias, kv_width), (Role::ValueBias, kv_width)];
    let mut parts: Vec<HostTensor> = Vec::new();
    for (role, width) in weights {
        parts.push(loader.tensor(role, layer, [width, hidden])?);
    }
    let mut part_biases: Vec<HostTensor> = Vec::new();
    for (role, width) in biases.into_iter().filter(|_| gqa.qkv_bias) {
        part_biases.push(loader.tensor(role, layer, [1, width])?);
    }
    let qkv = loader.upload_linear(&parts, &part_biases)?;
    let output = loader.tensor(Role::Output, layer, [hidden, q_width])?;
    let output_bias = match gqa.output_bias {
        true => vec![loader.tensor(Role::OutputBias, layer, [1, hidden])?],
        false => Vec::new(),
    };
    Ok(GqaWeights { qkv, output: loader.upload_linear(&[output], &output_bias)? })
}

/// The rope table for the positions asked for, with the frequency divisors of a GGUF file where it has them.
pub(crate) fn load_rope(loader: &mut Loader) -> Result<Weight, ModelError> {
    let config = &loader.config.rope;
    let divisors = match loader.has(Role::RopeFactors, 0) {
        true => {
            let tensor = loader.tensor(Role::RopeFactors, 0, [1, config.dim / 2])?;
            let values = tensor.to_f32();
            if let Some(bad) = values.iter().find(|v| **v <= 0.0) {
                let problem = format!("a divisor of frequencies is {bad}, not above 0");
                return Err(lingqu_tensor::TensorError { name: tensor.name, problem }.into());
            }
            Some(values)
        }
        false => None,
    };
    let table = rope::table(config, divisors.as_deref(), loader.options.context_tokens_max);
    Ok(loader.backend.upload_table(&table)?)
}
