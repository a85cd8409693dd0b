//! A Hugging Face folder: `config.json`, and safetensors in one file or in shards with an index.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;

use crate::error::CheckpointError;
use crate::folder::{Folder, is_plain_name};
use crate::safetensors;
use crate::tensors::Entry;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const CONFIG: &str = "config.json";
const ADAPTER: &str = "adapter_model.safetensors";
const ADAPTER_CONFIG: &str = "adapter_config.json";
/// `config.json`, tokenizers and templates. The largest tokenizers in use take about 35 MB.
pub const TEXT_BYTES_MAX: usize = 128 << 20;
/// Block of FP8 scales where `config.json` does not say: DeepSeek-V3's.
const FP8_BLOCK_DEFAULT: [usize; 2] = [128, 128];

pub struct HuggingFaceModel {
    pub tensors: Vec<Entry>,
    /// Rows and columns that share one FP8 scale.
    pub fp8_block: [usize; 2],
    pub config: lingqu_tensor::Bytes,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Config {
    quantization_config: Option<QuantizationConfig>,
}

#[derive(Deserialize)]
struct QuantizationConfig {
    weight_block_size: Option<[usize; 2]>,
}

/// Opens `model.safetensors`, or the shards that the index names, or every safetensors file that is there.
pub fn open(folder: &Folder, names: &[String]) -> Result<HuggingFaceModel, CheckpointError> {
    let Some(config) = folder.read(CONFIG, TEXT_BYTES_MAX)? else {
        return Err(CheckpointError::file(&folder.file_label(CONFIG), "is missing"));
    };
    let fp8_block = fp8_block(&folder.file_label(CONFIG), config.as_slice())?;
    let has = |name: &str| names.iter().any(|n| n == name);
    let tensors = if has(SINGLE) {
        files(folder, &[SINGLE.into()])?
    } else if has(INDEX) {
        indexed(folder)?
    } else {
        let shards: Vec<String> = names.iter().filter(|n| n.ends_with(".safetensors")).cloned().collect();
        files(folder, &shards)?
    };
    Ok(HuggingFaceModel { tensors, fp8_block, config })
}

/// Opens `adapter_model.safetensors` beside its `adapter_config.json`, which is not looked into.
pub fn open_adapter(folder: &Folder) -> Result<HuggingFaceModel, CheckpointError> {
    let config = folder.read(ADAPTER_CONFIG, TEXT_BYTES_MAX)?;
    let config = config.ok_or_else(|| CheckpointError::file(&folder.file_label(ADAPTER_CONFIG), "is missing"))?;
    Ok(HuggingFaceModel { tensors: shard(folder, ADAPTER)?, fp8_block: FP8_BLOCK_DEFAULT, config })
}

fn files(folder: &Folder, names: &[String]) -> Result<Vec<Entry>, CheckpointError> {
    let mut tensors = Vec::new();
    for name in names {
        tensors.extend(shard(folder, name)?);
    }
    Ok(tensors)
}

fn shard(folder: &Folder, name: &str) -> Result<Vec<Entry>, CheckpointError> {
    match folder.map(name)? {
        Some(file) => safetensors::parse(&file),
        None => Err(CheckpointError::file(&folder.file_label(name), "is missing")),
    }
}

/// The tensors that the index lists, each from the shard it names. What else lies in the shards is left out.
fn indexed(folder: &Folder) -> Result<Vec<Entry>, CheckpointError> {
    let label = folder.file_label(INDEX);
    let bytes = folder.read(INDEX, TEXT_BYTES_MAX)?;
    let bytes = bytes.ok_or_else(|| CheckpointError::file(&label, "is missing"))?;
    let index: Index = serde_json::from_slice(bytes.as_slice())
        .map_err(|error| CheckpointError::file(&label, format!("is broken: {error}")))?;
    let mut by_shard: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, shard) in &index.weight_map {
        if !is_plain_name(shard) {
            return Err(CheckpointError::tensor(&label, tensor, format!("{shard:?} is not the name of a shard")));
        }
        by_shard.entry(shard).or_default().push(tensor);
    }
    let mut tensors = Vec::with_capacity(index.weight_map.len());
    for (name, wanted) in by_shard {
        let held = shard(folder, name)?;
        let places: HashMap<&str, usize> = held.iter().enumerate().map(|(i, e)| (e.info.name.as_str(), i)).collect();
        if let Some(missing) = wanted.iter().find(|tensor| !places.contains_key(*tensor)) {
            let problem = "is missing, though the index says that it is here";
            return Err(CheckpointError::tensor(&folder.file_label(name), missing, problem));
        }
        tensors.extend(held.into_iter().filter(|e| index.weight_map.get(&e.info.name).is_some_and(|s| s == name)));
    }
    Ok(tensors)
}

fn fp8_block(label: &str, config: &[u8]) -> Result<[usize; 2], CheckpointError> {
    let config: Config =
        serde_json::from_slice(config).map_err(|error| CheckpointError::file(label, format!("is broken: {error}")))?;
    match config.quantization_config.and_then(|q| q.weight_block_size) {
        None => Ok(FP8_BLOCK_DEFAULT),
        Some(block) if block.iter().all(|b| (1..=1 << 20).contains(b)) => Ok(block),
        Some(block) => {
            let problem = format!("quantization_config.weight_block_size {block:?} is not two numbers of 1 or more");
            Err(CheckpointError::file(label, problem))
        }
    }
}
