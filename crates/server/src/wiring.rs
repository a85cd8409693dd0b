//! The one place that names concrete backends: from arguments to a loaded model.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use lingqu_backend::{Backend, Exchange, KvPrecision, KvSpec, KvStore};
use lingqu_backend_cpu::{CpuBackend, CpuConfig, Isa, Precision};
use lingqu_backend_gpu::{GpuBackend, GpuConfig, Row};
use lingqu_backend_reference::ReferenceBackend;
use lingqu_cluster::{ClusterExchange, WireFormat};
use lingqu_engine::Speculation;
use lingqu_model::{Adapter, Experts, LoadOptions, LoadProgress, Model, Package, load_with_experts};
use lingqu_tokenizer::Tokenizer;
use lingqu_types::{Limits, SamplingParams};

use crate::cli::{Activations, BackendName, ExpertsPlace, KvCache, ModelArgs, Wire};
use crate::membership::ClusterAt;
use crate::{Usage, cluster, embedded, membership};

/// Longest context served unless `--max-context` asks for more: bounds the KV cache of models that allow 128k.
const DEFAULT_CONTEXT_TOKENS_MAX: usize = 8192;

/// The checkpoint at `path`, or the embedded one.
pub fn open_package(path: Option<&Path>) -> Result<Package> {
    match path {
        Some(path) => Package::open(path).with_context(|| format!("cannot open the model {}", path.display())),
        None => embedded::package(),
    }
}

/// Takes the package's tokenizer, for commands that cannot do without.
pub fn tokenizer(package: &mut Package) -> Result<Tokenizer> {
    let why = package.tokenizer_missing.as_deref().unwrap_or("unknown");
    package.tokenizer.take().with_context(|| format!("the model has no tokenizer: {why}"))
}

/// The model's own wishes over plain sampling.
pub fn default_sampling(package: &Package) -> SamplingParams {
    let (plain, own) = (SamplingParams::default(), &package.generation);
    SamplingParams {
        temperature: own.temperature.unwrap_or(plain.temperature),
        top_p: own.top_p.unwrap_or(plain.top_p),
        top_k: own.top_k.unwrap_or(plain.top_k),
        min_p: own.min_p.unwrap_or(plain.min_p),
        repetition_penalty: own.repetition_penalty.unwrap_or(plain.repetition_penalty),
        ..plain
    }
}

/// Whether a backend is done with a weight when it has taken it, or [`Backend::settle`] is called until it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Weights {
    AtOnce,
    Settle,
}

/// The backend that was asked for, or the one that this machine has.
pub fn backend(args: &ModelArgs, weights: Weights) -> Result<Arc<dyn Backend>> {
    Ok(match args.backend {
        Some(BackendName::Reference) => Arc::new(ReferenceBackend::new()),
        Some(BackendName::Cpu) => Arc::new(cpu_backend(args, weights)?),
        Some(BackendName::Cuda) => Arc::new(accelerator(Row::Cuda, args)?),
        Some(BackendName::Dcu) => Arc::new(accelerator(Row::Dcu, args)?),
        Some(BackendName::Emu) => Arc::new(accelerator(Row::Emu, args)?),
        Some(BackendName::Auto) | None => automatic(args, weights)?,
    })
}

fn accelerator(row: Row, args: &ModelArgs) -> Result<GpuBackend> {
    Ok(GpuBackend::new(&accelerator_config(row, args))?)
}

fn accelerator_config(row: Row, args: &ModelArgs) -> GpuConfig {
    GpuConfig { device: args.device, ..GpuConfig::of(row) }
}

/// Rows of accelerators that are tried by themselves, in this order; the emulator is only for those who ask for it.
const ACCELERATORS: [Row; 2] = [Row::Cuda, Row::Dcu];

/// The first accelerator that can be used, else the cpu. Says what was found: always where `auto` was asked for, else
/// only where there is an accelerator.
fn automatic(args: &ModelArgs, weights: Weights) -> Result<Arc<dyn Backend>> {
    let asked = args.backend.is_some();
    for row in ACCELERATORS {
        let why = match GpuBackend::find(&accelerator_config(row, args)) {
            Ok(Ok(backend)) => {
                eprintln!("lingqu: found {}", backend.capabilities().name);
                return Ok(Arc::new(backend));
            }
            Ok(Err(why)) => why.to_string(),
            Err(why) if asked => why.to_string(),
            Err(_) => continue,
        };
        eprintln!("lingqu: {} cannot be used: {why}", row.name());
    }
    let backend = cpu_backend(args, weights)?;
    if asked {
        eprintln!("lingqu: found {}", backend.capabilities().name);
    }
    Ok(Arc::new(backend))
}

/// The cpu backend, for commands that need it by itself.
pub fn cpu_backend(args: &ModelArgs, weights: Weights) -> Result<CpuBackend> {
    let isa: Option<Isa> = match &args.isa {
        Some(name) => Some(name.parse().map_err(|e| Usage(format!("--isa {name}: {e}")))?),
        None => None,
    };
    let threads = args.threads.map_or(0, |n| n.get());
    let precision = match args.activations {
        Activations::Int8 => Precision::Int8,
        Activations::Int16 => Precision::Int16,
    };
    let later = weights == Weights::Settle;
    CpuBackend::new(CpuConfig { threads, isa, precision, later }).map_err(|e| Usage(e.to_string()).into())
}

/// The context that a model is served with: what was asked for, checked against what it was trained for.
pub fn context_tokens_max(package: &Package, asked: Option<usize>) -> Result<usize> {
    let trained = package.config.context_tokens_max;
    match asked {
        Some(tokens) if tokens > trained => {
            Err(Usage(format!("--max-context {tokens}: the model's own limit is {trained}")).into())
        }
        Some(tokens) => Ok(tokens),
        None => Ok(trained.min(DEFAULT_CONTEXT_TOKENS_MAX)),
    }
}

/// Loads the model with a progress bar on stderr (none where stderr is not a terminal).
pub fn load(
    package: &Package,
    backend: &Arc<dyn Backend>,
    args: &ModelArgs,
    limits: &Limits,
    speculation: Option<&Speculation>,
) -> Result<Loaded> {
    let options = LoadOptions {
        batch_rows_max: limits.batch_rows_max,
        logit_rows_max: limits.logit_rows_max,
        context_tokens_max: limits.context_tokens_max,
        speculate: speculation.is_some(),
    };
    let mut exchange = None;
    let experts = match (&args.cluster, args.exchange_wire, args.experts) {
        (Some(at), _, _) => {
            let cluster = match at {
                ClusterAt::File(file) => {
                    args.etcd.must_be_unused()?;
                    cluster::connect(file, package, backend, &options)?
                }
                ClusterAt::Etcd(address) => membership::connect(address, &args.etcd, package, backend, &options)?,
            };
            let cluster = exchange.insert(cluster);
            Experts::Behind(Arc::clone(cluster) as Arc<dyn Exchange>)
        }
        (None, Some(wire), _) => {
            let wire = match wire {
                Wire::F32 => WireFormat::F32,
                Wire::Bf16 => WireFormat::Bf16,
                Wire::Int8 => WireFormat::Int8,
            };
            cluster::alone(wire, open_package(args.model.as_deref())?, backend, &options)?
        }
        (None, None, ExpertsPlace::Device) => Experts::Here,
        (None, None, ExpertsPlace::Cpu) => Experts::On(Arc::new(cpu_backend(args, Weights::AtOnce)?)),
    };
    let style = "{msg} [{bar:40}] {bytes}/{total_bytes} {eta}";
    let bar = ProgressBar::new(package.checkpoint.bytes());
    bar.set_style(ProgressStyle::with_template(style).expect("a valid template").progress_chars("=> "));
    bar.set_message("loading");
    let mut progress = |p: LoadProgress| {
        bar.set_length(p.bytes_total);
        bar.set_position(p.bytes_done);
    };
    let model = load_with_experts(package, backend.clone(), &options, experts, &mut progress)?;
    bar.finish_and_clear();
    Ok(Loaded { model, cluster: exchange })
}

/// A model, and the cluster that holds its routed experts, if one does.
pub struct Loaded {
    pub model: Box<dyn Model>,
    pub cluster: Option<Arc<ClusterExchange>>,
}

/// How the numbers of an expert come about on a backend; equal words, equal bits.
pub fn arithmetic(backend: &dyn Backend, args: &ModelArgs) -> String {
    let name = &backend.capabilities().name;
    let activations = match args.activations {
        Activations::Int8 => "int8",
        Activations::Int16 => "int16",
    };
    // The cpu backend has the same bits on every instruction set, for any number of threads.
    if name.starts_with("cpu") { format!("cpu, {activations} activations") } else { name.clone() }
}

/// How finely the cache keeps what it holds.
pub fn kv_precision(args: &ModelArgs) -> KvPrecision {
    match args.kv_cache {
        KvCache::Full => KvPrecision::Full,
        KvCache::Int8 => KvPrecision::Int8,
    }
}

/// Gives the model its LoRA adapters, `(name, folder)`.
pub fn load_adapters<'a>(model: &mut dyn Model, adapters: impl IntoIterator<Item = (&'a str, &'a Path)>) -> Result<()> {
    for (name, path) in adapters {
        let mut load = || model.load_adapter(&Adapter::open(name, path)?);
        load().with_context(|| format!("cannot load the adapter {}", path.display()))?;
    }
    Ok(())
}

/// A KV cache for commands that run a model without the engine.
pub fn alloc_kv(backend: &dyn Backend, model: &dyn Model, limits: &Limits, precision: KvPrecision) -> Result<KvStore> {
    let spec = KvSpec {
        layers: model.layers(),
        blocks: limits.blocks,
        block_tokens: limits.block_tokens,
        entry: model.kv_entry(),
        precision,
    };
    Ok(backend.alloc_kv(&spec)?)
}
