//! `lingqu plan`: a cluster on paper, from a configuration and figures of devices.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use lingqu_cluster::read_load;
use lingqu_model::{ModelConfig, Package};
use lingqu_plan::{Fleet, Inventory, Plan, Weights, Wire, Workload};
use lingqu_tensor::Format;
use serde_json::Value;

use crate::cli::{KvCache, PlanArgs, WireName};

/// Of a configuration or of the nodes.
const FILE_BYTES_MAX: u64 = 4 << 20;

pub fn run(args: &PlanArgs) -> Result<()> {
    let inventory = inventory(&args.model, args.quant)?;
    let nodes = args.nodes.display().to_string();
    let fleet = Fleet::parse(&read(&args.nodes)?, &nodes)?;
    let workload = Workload {
        sequences: args.sequences,
        context_tokens: args.context,
        prefill_rows: args.prefill_rows,
        // Of int8: a value's own byte, and 4 of its scale to 64.
        kv_value_bytes: if args.kv_cache == KvCache::Int8 { 1.0 + 4.0 / 64.0 } else { 2.0 },
        wire: match args.wire {
            WireName::F32 => Wire::F32,
            WireName::Bf16 => Wire::Bf16,
            WireName::Int8 => Wire::Int8,
        },
        redundancy: args.redundancy,
        load: args.load.as_deref().map(read_load).transpose()?,
    };
    let plan = Plan::make(inventory, fleet, workload)?;
    let mut out = std::io::stdout().lock();
    match args.json {
        true => writeln!(out, "{}", lingqu_plan::json(&plan))?,
        false => write!(out, "{}", lingqu_plan::text(&plan, args.verbose))?,
    }
    Ok(())
}

fn inventory(path: &Path, quant: Option<Weights>) -> Result<Inventory> {
    let Some(file) = config_alone(path)? else {
        let package = Package::open(path)?;
        return Ok(match quant {
            Some(weights) => Inventory::from_config(&package.config, weights)?,
            None => Inventory::from_package(&package)?,
        });
    };
    let text = read(&file)?;
    let folder =
        file.canonicalize()?.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    let config = ModelConfig::from_config_json(&text, &folder.unwrap_or_else(|| "model".into()))
        .with_context(|| file.display().to_string())?;
    let says: Value = serde_json::from_str(&text)?;
    let released = match says["quantization_config"]["quant_method"].as_str() {
        Some("fp8") => Weights::Fp8,
        _ => Weights::Plain(Format::Bf16),
    };
    Ok(Inventory::from_config(&config, quant.unwrap_or(released))?)
}

/// The configuration, where there is nothing but it: a .json file, or a folder without weights.
fn config_alone(path: &Path) -> Result<Option<PathBuf>> {
    if path.extension().is_some_and(|ext| ext == "json") {
        return Ok(Some(path.into()));
    }
    let config = path.join("config.json");
    if !config.is_file() {
        return Ok(None);
    }
    for entry in std::fs::read_dir(path).with_context(|| path.display().to_string())? {
        let name = PathBuf::from(entry?.file_name());
        if name.extension().is_some_and(|ext| ext == "safetensors" || ext == "gguf") {
            return Ok(None);
        }
    }
    Ok(Some(config))
}

fn read(path: &Path) -> Result<String> {
    let bytes = std::fs::metadata(path).with_context(|| path.display().to_string())?.len();
    if bytes > FILE_BYTES_MAX {
        bail!("{}: has {bytes} bytes, at most {FILE_BYTES_MAX} are read", path.display());
    }
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}
