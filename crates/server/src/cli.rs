//! The command line: what can be asked, and the help that explains it.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use lingqu_engine::Speculation;

use crate::membership::{ClusterAt, EtcdArgs};

/// Sequences computed together unless said otherwise.
pub const DEFAULT_SEQUENCES: usize = 16;

/// Inference server for DeepSeek-R1/V3 and the R1-Distill family.
///
/// Without --model every command uses the small default model that is embedded in this binary.
#[derive(Debug, Parser)]
#[command(name = "lingqu", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve completions over gRPC and HTTP until SIGTERM, then finish what runs and exit.
    Serve(ServeArgs),
    /// Hold routed experts for a server, until SIGTERM.
    Worker(crate::commands::worker::WorkerArgs),
    /// Look at the workers of a running server, drain them, move experts between them.
    Cluster(ClusterArgs),
    /// Generate text for one prompt: the text goes to stdout, the figures to stderr.
    Generate(GenerateArgs),
    /// Print log-probabilities of given texts or token ids, one JSON object a line.
    Score(ScoreArgs),
    /// Describe a checkpoint: architecture, formats by tensor role, bytes, memory needed.
    Inspect(InspectArgs),
    /// Plan a cluster: where experts go, what each node holds, what crosses the network, how fast it will be.
    Plan(PlanArgs),
    /// List the devices that can compute, and why others cannot be used.
    Devices(DevicesArgs),
    /// Prepare the kernels of accelerators.
    Kernels(KernelsArgs),
    /// Measure load time, prefill and decode speed, and the share of memory bandwidth reached.
    Bench(BenchArgs),
    /// Turn text into token ids with the model's tokenizer.
    Tokenize(TokenizeArgs),
    /// Turn token ids into text with the model's tokenizer.
    Detokenize(DetokenizeArgs),
}

/// Needs no weights and no devices: a config.json and figures of nodes are enough (docs/plan.md).
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// A config.json, a folder with one, or a checkpoint as --model elsewhere.
    #[arg(long, value_name = "PATH")]
    pub model: PathBuf,
    /// Figures of the devices, in TOML.
    #[arg(long, value_name = "FILE")]
    pub nodes: PathBuf,
    /// What the weights will be: bf16, fp8, q8_0, q6_k, q4_k_m, … [default: as in the files, else as the config says].
    #[arg(long, value_name = "FORMAT")]
    pub quant: Option<lingqu_plan::Weights>,
    /// Sequences decoded together, over all servers.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_SEQUENCES)]
    pub sequences: usize,
    /// Tokens that each of them has in the cache.
    #[arg(long, value_name = "TOKENS", default_value = "4096")]
    pub context: usize,
    /// Rows of a step that computes prompts, on one server.
    #[arg(long, value_name = "N", default_value = "512")]
    pub prefill_rows: usize,
    /// How finely keys and values are kept.
    #[arg(long, value_enum, default_value = "full")]
    pub kv_cache: KvCache,
    /// How activations cross the network.
    #[arg(long, value_enum, default_value = "bf16")]
    pub wire: WireName,
    /// Extra copies of experts, as a share of them.
    #[arg(long, value_name = "SHARE", default_value = "0")]
    pub redundancy: f64,
    /// Rows that each expert got, as JSON: a list of layers, each a list of counts [default: all the same].
    #[arg(long, value_name = "FILE")]
    pub load: Option<PathBuf>,
    /// Print every expert's nodes too.
    #[arg(long)]
    pub verbose: bool,
    /// Print everything as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WireName {
    F32,
    Bf16,
    Int8,
}

#[derive(Debug, Args)]
pub struct ModelArgs {
    /// Checkpoint: a folder with safetensors and config.json, a .gguf file, or any part of a split .gguf.
    #[arg(long, value_name = "PATH")]
    pub model: Option<PathBuf>,
    /// What computes [default: an accelerator that can be used, else cpu].
    #[arg(long, value_enum)]
    pub backend: Option<BackendName>,
    /// Number of the accelerator, as `lingqu devices` lists them.
    #[arg(long, value_name = "N", default_value = "0")]
    pub device: usize,
    /// Where the routed experts of a mixture are kept.
    #[arg(long, value_enum, default_value = "device")]
    pub experts: ExpertsPlace,
    /// Keep the routed experts in the workers that this file lists, or that are registered in etcd, or with mpi: in the
    /// other ranks of the MPI job (docs/cluster.md).
    #[arg(long, value_name = "FILE|etcd://HOST:PORT[,HOST:PORT]/NAME", conflicts_with = "experts")]
    pub cluster: Option<ClusterAt>,
    #[command(flatten)]
    pub etcd: EtcdArgs,
    /// Round what goes to experts and comes back as this wire of a cluster does: the same bits without the cluster.
    #[arg(long, value_enum, conflicts_with_all = ["experts", "cluster"])]
    pub exchange_wire: Option<Wire>,
    /// Threads of the cpu backend [default: all cores].
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    /// Instruction set of the cpu backend: portable, avx2, avx512, amx [default: the best this machine has].
    #[arg(long, value_name = "NAME")]
    pub isa: Option<String>,
    /// How finely the cpu backend rounds activations that meet weights of a block format.
    #[arg(long, value_enum, default_value = "int8")]
    pub activations: Activations,
    /// How finely keys and values are kept.
    #[arg(long, value_enum, default_value = "full")]
    pub kv_cache: KvCache,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Wire {
    /// As they are.
    F32,
    /// In 16 bits.
    Bf16,
    /// In 8 bits with a scale for each 128 values, and back in 16.
    Int8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KvCache {
    /// In halves (f32 on the reference backend).
    Full,
    /// In 8 bits with a scale to 64 values: half the memory.
    Int8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Activations {
    /// 127 steps, as llama.cpp has them.
    Int8,
    /// 32258 steps: near f32; prompts take about twice as long.
    Int16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendName {
    /// The first accelerator that can be used, else cpu; says what was found.
    Auto,
    /// SIMD kernels over quantised weights.
    Cpu,
    /// Plain f32 arithmetic: slow, the yardstick of all others.
    Reference,
    /// NVIDIA GPUs.
    Cuda,
    /// Hygon DCUs, AMD GPUs.
    Dcu,
    /// The kernels of accelerators, emulated: slow, for tests.
    Emu,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExpertsPlace {
    /// Where the rest of the model is.
    Device,
    /// In host memory, on the cpu backend: for models larger than their accelerator.
    Cpu,
}

/// `NAME=PATH`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterArg {
    pub name: String,
    pub path: PathBuf,
}

impl FromStr for AdapterArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const NAME_CHARS_MAX: usize = 64;
        let (name, path) = text.split_once('=').ok_or("write NAME=PATH")?;
        let is_plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        match (name.len(), path) {
            (1..=NAME_CHARS_MAX, path) if is_plain && !path.is_empty() => {
                Ok(Self { name: name.into(), path: path.into() })
            }
            (_, "") => Err("the path is empty".into()),
            _ => Err(format!("a name is 1 to {NAME_CHARS_MAX} letters, digits, '.', '_' or '-'")),
        }
    }
}

#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Address of the gRPC port.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:50051")]
    pub grpc_addr: SocketAddr,
    /// Address of the HTTP port, where OpenAI's clients call.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub http_addr: SocketAddr,
    /// Open no HTTP port.
    #[arg(long)]
    pub no_http: bool,
    /// Tokens of one sequence, prompt and output [default: the model's own, at most 8192].
    #[arg(long, value_name = "N")]
    pub max_context: Option<NonZeroUsize>,
    /// Sequences computed together.
    #[arg(long, value_name = "N", default_value_t = NonZeroUsize::new(DEFAULT_SEQUENCES).expect("it is not 0"))]
    pub max_sequences: NonZeroUsize,
    /// Requests that may wait; one more is refused with RESOURCE_EXHAUSTED or 429.
    #[arg(long, value_name = "N", default_value = "1024")]
    pub max_queue: NonZeroUsize,
    /// A LoRA adapter (a PEFT folder) that requests can ask for by this name; may be given several times.
    #[arg(long = "adapter", value_name = "NAME=PATH")]
    pub adapters: Vec<AdapterArg>,
    /// Tokens that the KV cache holds, for all sequences and for beginnings that are kept [default: a quarter of
    /// --max-context for each of --max-sequences].
    #[arg(long, value_name = "N")]
    pub kv_tokens: Option<NonZeroUsize>,
    /// Who shares what was computed of prompts that begin alike.
    #[arg(long, value_enum, default_value = "all")]
    pub prefix_sharing: Sharing,
    /// A tenant's share of the machine beside others' [default: 1]; may be given several times.
    #[arg(long = "tenant-weight", value_name = "NAME=N", value_parser = tenant_weight)]
    pub tenant_weights: Vec<(String, u32)>,
    /// Who may drain workers of the cluster and move its experts: callers on this machine, or all who reach the port.
    #[arg(long, value_enum, default_value = "loopback")]
    pub cluster_changes_from: Callers,
    /// Seconds that running requests get to finish after SIGTERM.
    #[arg(long, value_name = "SECONDS", default_value = "30")]
    pub drain_timeout: u64,
    #[command(flatten)]
    pub speculation: SpeculationArgs,
    /// With more sequences than this decoding at once, --speculate guesses nothing.
    #[arg(long, value_name = "N", default_value_t = Speculation::SEQUENCES_MAX)]
    pub speculate_sequences: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sharing {
    /// All requests.
    All,
    /// Those of one tenant.
    Tenant,
    /// None.
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Callers {
    /// Those on this machine.
    Loopback,
    /// All.
    Any,
}

fn tenant_weight(text: &str) -> Result<(String, u32), String> {
    let (name, weight) = text.split_once('=').ok_or("write NAME=N")?;
    match weight.parse() {
        Ok(weight @ 1..=1_000_000) if !name.is_empty() => Ok((name.into(), weight)),
        _ => Err("a name, and a weight of 1 to 1000000".into()),
    }
}

#[derive(Debug, Args)]
pub struct SpeculationArgs {
    /// Guess N tokens ahead with the model's own prediction layer (DeepSeek V3, R1; 1 unless N is given) and verify
    /// them in one step. The text stays the same.
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "1")]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=16))]
    pub speculate: Option<u8>,
}

impl SpeculationArgs {
    pub fn speculation(&self, sequences_max: usize) -> Option<Speculation> {
        self.speculate.map(|drafts| Speculation { drafts: drafts.into(), sequences_max })
    }
}

#[derive(Debug, Args)]
pub struct ClusterArgs {
    #[command(subcommand)]
    pub command: ClusterCommand,
    /// The gRPC port of the server.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:50051", global = true)]
    pub server: String,
}

#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Who is there and holds how much.
    Status,
    /// Move all experts off a worker, and wait until it may be stopped.
    Drain { worker: u32 },
    /// Give a drained worker work again.
    Undrain { worker: u32 },
    /// Move experts so that all workers have about equally much to do.
    Rebalance {
        /// Only print what would be done.
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Answer with this LoRA adapter (a PEFT folder).
    #[arg(long, value_name = "PATH")]
    pub adapter: Option<PathBuf>,
    /// Text to continue, or with --chat the user's message.
    #[arg(long, value_name = "TEXT")]
    pub prompt: String,
    /// Put the prompt through the model's chat template.
    #[arg(long)]
    pub chat: bool,
    /// Tokens to generate at most.
    #[arg(long, value_name = "N", default_value = "256")]
    pub max_tokens: u32,
    /// 0 picks the likeliest token each time [default: the model's own, else 1].
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub temperature: Option<f32>,
    /// Keep the likeliest tokens that together reach this probability [default: the model's own, else 1].
    #[arg(long, value_name = "P")]
    pub top_p: Option<f32>,
    /// Keep this many likeliest tokens; 0 keeps all [default: the model's own, else 0].
    #[arg(long, value_name = "K")]
    pub top_k: Option<u32>,
    /// Seed of the draws: the same seed gives the same text [default: a new one, printed].
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
    /// Tokens of the sequence, prompt and output [default: the model's own, at most 8192].
    #[arg(long, value_name = "N")]
    pub max_context: Option<NonZeroUsize>,
    #[command(flatten)]
    pub speculation: SpeculationArgs,
}

#[derive(Debug, Args)]
pub struct ScoreArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// One JSON object a line: {"token_ids":[...]} or {"text":"..."}; - reads standard input.
    #[arg(long, value_name = "FILE")]
    pub input: PathBuf,
    /// Likeliest tokens to print after each position.
    #[arg(long, value_name = "K", default_value = "0")]
    pub top: usize,
}

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Checkpoint [default: the embedded model].
    pub path: Option<PathBuf>,
    /// One JSON object instead of tables.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct DevicesArgs {
    /// Measure the bandwidth of each device's memory.
    #[arg(long)]
    pub measure: bool,
}

#[derive(Debug, Args)]
pub struct KernelsArgs {
    #[command(subcommand)]
    pub command: KernelsCommand,
}

#[derive(Debug, Subcommand)]
pub enum KernelsCommand {
    /// Compile all kernels into the cache, for machines that have the device but no compiler.
    Build(KernelsBuildArgs),
}

#[derive(Debug, Args)]
pub struct KernelsBuildArgs {
    /// Architectures: sm_90, gfx928, … (warp32 and warp64 are those of the emulator).
    #[arg(long, value_name = "ARCH,ARCH", value_delimiter = ',', required = true)]
    pub arch: Vec<String>,
}

#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Prompt tokens of each sequence.
    #[arg(long, value_name = "TOKENS", default_value = "512")]
    pub prompt: NonZeroUsize,
    /// Tokens decoded by each sequence.
    #[arg(long = "gen", value_name = "TOKENS", default_value = "64")]
    pub generate: NonZeroUsize,
    /// Sequences decoded together, one figure for each.
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_value = "1,4,16")]
    pub batch: Vec<NonZeroUsize>,
    /// Also decode one sequence after this many tokens, made of copies of the prompt's keys and values.
    #[arg(long, value_name = "TOKENS")]
    pub context: Option<NonZeroUsize>,
    /// Repetitions of each figure.
    #[arg(long, value_name = "N", default_value = "3")]
    pub repeat: NonZeroUsize,
    /// One JSON object instead of a table.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct TokenizeArgs {
    /// Checkpoint [default: the embedded model].
    #[arg(long, value_name = "PATH")]
    pub model: Option<PathBuf>,
    /// Text; - reads standard input.
    pub text: String,
    /// Add the tokens that the model expects around a text, such as begin-of-sentence.
    #[arg(long)]
    pub special: bool,
}

#[derive(Debug, Args)]
pub struct DetokenizeArgs {
    /// Checkpoint [default: the embedded model].
    #[arg(long, value_name = "PATH")]
    pub model: Option<PathBuf>,
    /// Token ids, separated by commas or spaces.
    #[arg(required = true, value_delimiter = ',')]
    pub ids: Vec<u32>,
    /// Leave special tokens out of the text.
    #[arg(long)]
    pub skip_special: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::AdapterArg;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }

    #[test]
    fn adapters_have_a_name_and_a_path() {
        let check = |text: &str, expected: Option<(&str, &str)>| {
            let parsed = text.parse::<AdapterArg>().ok();
            assert_eq!(
                parsed,
                expected.map(|(name, path)| AdapterArg { name: name.into(), path: path.into() }),
                "{text}"
            );
        };
        check("hotline-2=/data/a=b", Some(("hotline-2", "/data/a=b")));
        check("/data/a", None);
        check("=/data/a", None);
        check("hotline=", None);
        check("a b=/data/a", None);
        check(&format!("{}=a", "n".repeat(65)), None);
    }
}
