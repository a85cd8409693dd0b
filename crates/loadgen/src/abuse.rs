//! Clients that behave badly. Whatever they do, the server must answer or cut them off in bounded time, keep its
//! memory, and answer a good request afterwards exactly as before.

mod clients;
mod half_open;
mod malformed;
mod raw;

use std::sync::Arc;
use std::time::Duration;

use crate::cli::{Abuse, AbuseArgs, TargetArgs};
use crate::process::{raise_open_files, resident_bytes};
use crate::run::{connect, seconds};
use crate::target::{Answer, Listening, Target, probe};
use crate::workload::{Job, sample_text};

/// Tries of the good request, while the server clears up.
const TRIES: usize = 60;
const PROBE_TOKENS: u32 = 24;

/// What an act of abuse found out: a line for people, and what is wrong.
#[derive(Debug, Default)]
pub struct Finding {
    pub text: String,
    pub problems: Vec<String>,
}

/// Where the abused server is.
#[derive(Clone, Debug)]
pub struct Victim {
    /// host:port
    pub address: String,
    pub is_http: bool,
}

impl Victim {
    fn of(args: &TargetArgs) -> Self {
        match &args.http {
            Some(url) => {
                let address = url.trim_start_matches("http://").split('/').next().unwrap_or_default();
                Self { address: address.to_string(), is_http: true }
            }
            None => Self { address: args.grpc.clone().unwrap_or_default(), is_http: false },
        }
    }
}

/// A good request, the same each time.
pub fn good_job() -> Job {
    probe(sample_text(30), PROBE_TOKENS)
}

pub async fn run(args: &AbuseArgs) -> Result<(), String> {
    let files_max = raise_open_files();
    let limit = seconds("request-timeout", args.target.request_timeout)?;
    let hold = seconds("hold", args.hold)?;
    let victim = Victim::of(&args.target);
    let target = Arc::new(connect(&args.target, None).await?.target);
    let before = ask_good(&target, limit).await.map_err(|e| format!("before any abuse: {e}"))?;
    let memory = || args.target.server_pid.and_then(resident_bytes);
    let memory_before = memory();
    let mut problems = Vec::new();
    let attack = half_open::Attack {
        victim: &victim,
        target: &args.target,
        connected: &target,
        streams: args.streams,
        files_max,
        hold,
    };
    for kind in &args.kinds {
        let finding = match kind {
            Abuse::Slow => clients::slow(&args.target, args.clients, hold).await,
            Abuse::Dropped => clients::dropped(&args.target, args.clients).await,
            Abuse::HalfOpen => half_open::run(&attack).await,
            Abuse::Malformed => malformed::run(&victim, args.seed).await,
        };
        println!("{kind:?}: {}", finding.text);
        let named = finding.problems.into_iter().map(|problem| format!("{kind:?}: {problem}"));
        problems.extend(named);
        match ask_good(&target, limit).await {
            Ok(after) if after == before => println!("{kind:?}: afterwards the server answers as before"),
            Ok(_) => problems.push(format!("{kind:?}: afterwards the server answers otherwise than before")),
            Err(error) => problems.push(format!("{kind:?}: afterwards the server does not answer: {error}")),
        }
    }
    if let (Some(before), Some(after)) = (memory_before, memory()) {
        println!("server's memory: {} MiB before, {} MiB after", before >> 20, after >> 20);
        if after.saturating_sub(before) > args.growth_max << 20 {
            problems.push(format!("the server's memory grew by more than {} MiB", args.growth_max));
        }
    } else if args.target.server_pid.is_some() {
        problems.push("the server's process is gone, or its memory cannot be read".into());
    }
    if problems.is_empty() { Ok(()) } else { Err(problems.join("\n")) }
}

async fn ask_good(target: &Target, limit: Duration) -> Result<Answer, String> {
    let mut last = String::new();
    for _ in 0..TRIES {
        match target.ask_within(limit, &good_job(), &mut Listening::default()).await {
            Ok(reply) => return Ok(reply.answer),
            Err(failure) => last = format!("{:?}: {}", failure.kind, failure.message),
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Err(last)
}
