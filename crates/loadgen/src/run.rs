//! `lingqu-loadgen run`: one workload, from arguments to a summary.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cli::{RunArgs, TargetArgs, WorkloadArgs};
use crate::driver::{Plan, drive};
use crate::process::{raise_open_files, resident_bytes};
use crate::schedule::Arrivals;
use crate::summary::{Bounds, Tally, table};
use crate::target::grpc::GrpcTarget;
use crate::target::http::HttpTarget;
use crate::target::{Target, Wiring};
use crate::verify::Answers;
use crate::workload::{Kind, Shape, Workload, scale_of};

const CONTEXT_TOKENS_DEFAULT: usize = 4096;
const VOCABULARY_DEFAULT: u32 = 4000;
const VOCABULARY_MAX: u32 = 30_000;
/// A year: clocks count further, but nobody waits.
const SECONDS_MAX: f64 = 365.0 * 86_400.0;
const RATES: std::ops::RangeInclusive<f64> = 0.001..=100_000.0; // requests/s
/// Between two lines of progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(30);

/// A server, and what it says of itself.
pub struct Found {
    pub target: Target,
    pub context_tokens: Option<usize>,
    pub vocabulary: Option<u32>,
}

/// Connects to the server that the arguments name.
pub async fn connect(args: &TargetArgs, window_bytes: Option<u32>) -> Result<Found, String> {
    let wiring = Wiring { api: args.api, connections: args.connections, window_bytes, model: args.model.clone() };
    if let Some(url) = &args.http {
        let mut target = HttpTarget::new(url, &wiring).map_err(|f| f.message)?;
        target.choose_model().await.map_err(|f| f.message)?;
        return Ok(Found { target: Target::Http(Box::new(target)), context_tokens: None, vocabulary: None });
    }
    let address = args.grpc.as_deref().unwrap_or_default();
    let target = GrpcTarget::connect(address, &wiring).await.map_err(|f| f.message)?;
    let model = target.model().await.map_err(|f| f.message)?;
    Ok(Found {
        target: Target::Grpc(target),
        context_tokens: Some(model.context_tokens_max as usize),
        vocabulary: Some(model.vocabulary_size.min(VOCABULARY_MAX)),
    })
}

/// The workload's shape, what is missing asked from the target.
async fn shape(args: &WorkloadArgs, found: &Found) -> Result<Shape, String> {
    let context_tokens = args.context.or(found.context_tokens).unwrap_or(CONTEXT_TOKENS_DEFAULT);
    let chars_per_token = match args.chars_per_token {
        Some(given) => given,
        // No other workload cuts texts to a number of tokens.
        None if !matches!(args.workload, Kind::Policy | Kind::Mixed) => 1.0,
        None => found.target.chars_per_token().await.map_err(|f| f.message)?,
    };
    Ok(Shape {
        kind: args.workload,
        seed: args.seed,
        context_tokens,
        scale: args.scale.unwrap_or_else(|| scale_of(context_tokens)),
        chars_per_token,
        vocabulary: args.vocabulary.or(found.vocabulary).unwrap_or(VOCABULARY_DEFAULT),
        document_tokens: args.document_tokens,
        prompt_tokens: args.prompt_tokens,
        output_tokens: args.output_tokens,
        trace: args.trace,
        temperature: args.temperature,
        structured: args.structured,
        distinct: args.distinct,
    })
}

/// A length of time, at most [`SECONDS_MAX`].
pub fn seconds(name: &str, value: f64) -> Result<Duration, String> {
    let length = Duration::try_from_secs_f64(value).ok().filter(|_| value <= SECONDS_MAX);
    length.ok_or_else(|| format!("--{name}: {value} is not from 0 to {SECONDS_MAX} seconds"))
}

fn plan(args: &RunArgs) -> Result<Plan, String> {
    let arrivals = match (args.users, args.rate) {
        (Some(users), _) if users == 0 || users > args.in_flight_max => {
            return Err(format!("--users: from 1 to --in-flight-max, which is {}", args.in_flight_max));
        }
        (Some(users), _) => Arrivals::Closed { users, think_s: seconds("think", args.think)?.as_secs_f64() },
        (None, Some(rate)) if RATES.contains(&rate) => Arrivals::Open { requests_per_s: rate },
        (None, _) => return Err(format!("--rate: {RATES:?} requests a second")),
    };
    if args.workload.distinct == Some(0) {
        return Err("--distinct: at least 1".into());
    }
    if args.in_flight_max == 0 {
        return Err("--in-flight-max: at least 1".into());
    }
    Ok(Plan {
        arrivals,
        warm_up: seconds("warm-up", args.warm_up)?,
        length: args.duration.map(|s| seconds("duration", s)).transpose()?,
        requests_max: args.requests.unwrap_or(u64::MAX),
        in_flight_max: args.in_flight_max,
        request_timeout: seconds("request-timeout", args.target.request_timeout)?,
        seed: args.workload.seed,
    })
}

/// The lines of `requests.jsonl`, as they come.
struct Lines(Option<BufWriter<File>>);

impl Lines {
    fn create(folder: Option<&Path>) -> Result<Self, String> {
        let Some(folder) = folder else { return Ok(Self(None)) };
        let path = folder.join("requests.jsonl");
        let file = std::fs::create_dir_all(folder).and_then(|()| File::create(&path));
        file.map(|file| Self(Some(BufWriter::new(file)))).map_err(|e| format!("{}: {e}", path.display()))
    }

    fn write(&mut self, record: &crate::record::Record) -> Result<(), String> {
        let Some(file) = &mut self.0 else { return Ok(()) };
        writeln!(file, "{}", json!(record)).map_err(|e| format!("requests.jsonl: {e}"))
    }

    fn end(mut self) -> Result<(), String> {
        self.0.as_mut().map_or(Ok(()), |file| file.flush()).map_err(|e| format!("requests.jsonl: {e}"))
    }
}

pub async fn run(args: &RunArgs) -> Result<(), String> {
    let plan = plan(args)?;
    raise_open_files();
    let found = connect(&args.target, None).await?;
    let workload = Arc::new(Workload::new(shape(&args.workload, &found).await?));
    let target = Arc::new(found.target);
    let memory = || args.target.server_pid.and_then(resident_bytes);
    let memory_before = memory();
    let mut lines = Lines::create(args.out.as_deref())?;
    let mut tally = Tally::new(Bounds { ttft_ms: args.ttft_ms, tpot_ms: args.tpot_ms });
    let mut answers = args.verify.map(Answers::new);
    let (mut trouble, mut told) = (None, Instant::now());

    let outcome = drive(target.clone(), workload.clone(), &plan, |done| {
        tally.add(&done.record);
        if let Err(problem) = lines.write(&done.record) {
            trouble.get_or_insert(problem);
        }
        if let (Some(answers), Some(answer)) = (&mut answers, done.answer) {
            answers.add(done.record.request, done.record.job, answer);
        }
        if told.elapsed() >= PROGRESS_EVERY {
            told = Instant::now();
            eprintln!("{:.0} s: {} answered, {} failed", done.record.due_s, tally.answered(), tally.failed());
        }
    })
    .await;

    let mut summary = tally.figures(outcome.window_s);
    summary["label"] = args.label.as_str().into();
    summary["arrivals"] = json!(plan.arrivals);
    summary["workload"] = json!(workload.shape);
    summary["not_sent"] = outcome.not_sent.into();
    summary["server_memory_bytes"] = json!({"before": memory_before, "after": memory()});
    if let Some(answers) = answers {
        let verdict = answers.verify(&target, &workload, plan.request_timeout).await;
        summary["verify"] = verdict.to_json();
        if !verdict.is_good() {
            trouble.get_or_insert(format!("answers under load: {}", verdict.to_json()));
        }
    }
    lines.end()?;
    report(&summary, args.out.as_deref())?;
    if tally.answered() == 0 {
        return Err("no request that was due within the window was answered".into());
    }
    trouble.map_or(Ok(()), Err)
}

fn report(summary: &Value, folder: Option<&Path>) -> Result<(), String> {
    print!("{}", table(summary));
    for name in ["not_sent", "verify", "server_memory_bytes"] {
        if !summary[name].is_null() {
            println!("{name}: {}", summary[name]);
        }
    }
    let Some(folder) = folder else { return Ok(()) };
    let path = folder.join("summary.json");
    let text = serde_json::to_string_pretty(summary).expect("JSON values have a text form");
    std::fs::write(&path, text + "\n").map_err(|e| format!("{}: {e}", path.display()))
}
