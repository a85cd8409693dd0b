//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::target::Api;
use crate::workload::{Kind, Trace};

/// Loads an inference server, measures what its users would feel, and checks its answers.
#[derive(Debug, Parser)]
#[command(name = "lingqu-loadgen", version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Send a workload, and measure it.
    Run(Box<RunArgs>),
    /// Behave badly, then check that the server still answers as before.
    Abuse(AbuseArgs),
    /// Draw the summaries of some runs.
    Plot(PlotArgs),
}

#[derive(Debug, Args)]
pub struct TargetArgs {
    /// lingqu.v1 over gRPC, as 127.0.0.1:50051.
    #[arg(long, value_name = "ADDR", required_unless_present = "http", conflicts_with = "http")]
    pub grpc: Option<String>,
    /// OpenAI's interface, as http://127.0.0.1:8080.
    #[arg(long, value_name = "URL")]
    pub http: Option<String>,
    /// How texts are asked.
    #[arg(long, value_enum, default_value = "completions")]
    pub api: Api,
    /// Name of the model [default: the one that is served].
    #[arg(long, value_name = "NAME", default_value = "")]
    pub model: String,
    /// gRPC connections.
    #[arg(long, value_name = "N", default_value = "4")]
    pub connections: usize,
    /// Seconds that one request gets.
    #[arg(long, value_name = "S", default_value = "600")]
    pub request_timeout: f64,
    /// Process of the server, on this machine, whose memory is told.
    #[arg(long, value_name = "PID")]
    pub server_pid: Option<u32>,
}

#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub workload: WorkloadArgs,
    /// Closed loop: users that ask, wait for the answer, and ask again.
    #[arg(long, value_name = "N", required_unless_present = "rate", conflicts_with = "rate")]
    pub users: Option<usize>,
    /// Seconds that a user thinks between two requests, on average.
    #[arg(long, value_name = "S", default_value = "0", requires = "users")]
    pub think: f64,
    /// Open loop: requests a second, Poisson.
    #[arg(long, value_name = "R")]
    pub rate: Option<f64>,
    /// Seconds that are measured.
    #[arg(long, value_name = "S", required_unless_present = "requests")]
    pub duration: Option<f64>,
    /// Requests in all, those of the warm-up included.
    #[arg(long, value_name = "N")]
    pub requests: Option<u64>,
    /// Seconds before the measured ones.
    #[arg(long, value_name = "S", default_value = "0")]
    pub warm_up: f64,
    /// Requests open at the same time. Arrivals beyond wait for a place; their latency counts from when they were due.
    #[arg(long, value_name = "N", default_value = "256")]
    pub in_flight_max: usize,
    /// Goodput counts requests whose first token came within this.
    #[arg(long, value_name = "MS")]
    pub ttft_ms: Option<f64>,
    /// Goodput counts requests whose later tokens took at most this, on average.
    #[arg(long, value_name = "MS")]
    pub tpot_ms: Option<f64>,
    /// Ask this share of the different requests again, alone, and compare every answer that they got.
    #[arg(long, value_name = "SHARE", num_args = 0..=1, default_missing_value = "1")]
    pub verify: Option<f64>,
    /// What the run is called in plots.
    #[arg(long, value_name = "TEXT", default_value = "run")]
    pub label: String,
    /// Folder for requests.jsonl and summary.json.
    #[arg(long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct WorkloadArgs {
    #[arg(long, value_enum)]
    pub workload: Kind,
    /// Decides all requests and arrivals.
    #[arg(long, value_name = "S", default_value = "1")]
    pub seed: u64,
    /// Tokens of the target's context [default: what a gRPC target says, else 4096].
    #[arg(long, value_name = "N")]
    pub context: Option<usize>,
    /// Multiplies the workload's lengths [default: 1, less for contexts below 4096].
    #[arg(long, value_name = "X")]
    pub scale: Option<f64>,
    /// Characters that a token holds [default: the target is asked].
    #[arg(long, value_name = "X")]
    pub chars_per_token: Option<f64>,
    /// Token ids of `azure` and `fixed` are below this [default: what a gRPC target says, at most 30000; else 4000].
    #[arg(long, value_name = "N")]
    pub vocabulary: Option<u32>,
    /// Length of the document of `policy`, cut to the context.
    #[arg(long, value_name = "N", default_value = "8000")]
    pub document_tokens: usize,
    /// Prompts of `fixed`.
    #[arg(long, value_name = "N", default_value = "512")]
    pub prompt_tokens: usize,
    /// Answers of `fixed`.
    #[arg(long, value_name = "N", default_value = "64")]
    pub output_tokens: usize,
    /// Which trace `azure` is like.
    #[arg(long, value_enum, default_value = "conversation")]
    pub trace: Trace,
    /// 0 picks the likeliest token.
    #[arg(long, value_name = "T", default_value = "0")]
    pub temperature: f32,
    /// `hotline` asks for a JSON schema, and its answers end by themselves.
    #[arg(long)]
    pub structured: bool,
    /// Ask only this many different requests, over and over.
    #[arg(long, value_name = "N")]
    pub distinct: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Abuse {
    /// Clients that read one event a second.
    Slow,
    /// Clients that hang up in the middle of an answer.
    Dropped,
    /// Streams that are opened and left.
    HalfOpen,
    /// Requests that break the rules.
    Malformed,
}

#[derive(Debug, Args)]
pub struct AbuseArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    #[arg(long = "kind", value_enum, value_delimiter = ',', default_value = "slow,dropped,half-open,malformed")]
    pub kinds: Vec<Abuse>,
    /// Half-open streams.
    #[arg(long, value_name = "N", default_value = "10000")]
    pub streams: usize,
    /// Seconds for which half-open streams and slow readers are kept.
    #[arg(long, value_name = "S", default_value = "10")]
    pub hold: f64,
    /// Slow readers, and clients that hang up, at the same time.
    #[arg(long, value_name = "N", default_value = "32")]
    pub clients: usize,
    /// Fail when the server's memory grew by more than this.
    #[arg(long, value_name = "MIB", default_value = "256")]
    pub growth_max: u64,
    #[arg(long, value_name = "S", default_value = "1")]
    pub seed: u64,
}

#[derive(Debug, Args)]
pub struct PlotArgs {
    /// summary.json of each run.
    #[arg(required = true)]
    pub summaries: Vec<PathBuf>,
    /// What the plots are about.
    #[arg(long, value_name = "TEXT", default_value = "load")]
    pub title: String,
    /// Folder for the plots, and what their names begin with.
    #[arg(long, value_name = "FOLDER/PREFIX")]
    pub out: PathBuf,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
