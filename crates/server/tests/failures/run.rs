//! One run: streams, faults between their tokens, and what became of both.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lingqu_proto::v1::generate_event::Event as Said;
use lingqu_proto::v1::generate_request::Input;
use lingqu_proto::v1::inference_client::InferenceClient;
use lingqu_proto::v1::{GenerateRequest, Sampling};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::plan::{Event, Fault, PROMPTS, Plan, TOKENS_MAX};
use crate::processes::{Folder, Workers};
use crate::site::Site;
use crate::support::server::{Server, request, stream};

/// Whatever takes so long hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// Beyond recovery and a step's deadlines: for a busy machine.
const SLACK: Duration = Duration::from_secs(10);

/// Tokens of one process without a cluster, by prompt and whether the wire is narrow.
pub type Expected = BTreeMap<(usize, bool), Vec<u32>>;

fn request_of(prompt: usize, tokens: u32) -> GenerateRequest {
    let (text, seed) = PROMPTS[prompt];
    GenerateRequest {
        input: Some(Input::Prompt(text.into())),
        sampling: Some(Sampling { seed: Some(seed), temperature: Some(1.0), ..Default::default() }),
        ..request(tokens)
    }
}

pub async fn expected() -> Expected {
    let mut expected = Expected::new();
    for is_narrow in [false, true] {
        let server = Server::start(if is_narrow { &["--exchange-wire", "bf16"] } else { &[] });
        for prompt in 0..PROMPTS.len() {
            let tokens = stream(&mut server.client().await, request_of(prompt, TOKENS_MAX)).await;
            expected.insert((prompt, is_narrow), tokens);
        }
    }
    expected
}

/// What became of a run.
#[derive(Debug, Default)]
pub struct Report {
    pub seed: u64,
    pub faults: Vec<Fault>,
    /// Streams with the tokens of one process.
    pub exact: usize,
    /// Streams that failed as they may.
    pub unavailable: usize,
    /// The longest time without a token of a stream that goes on after the first fault, less the usual one; or until
    /// the last stream failed.
    pub recovery: Duration,
    /// From when the workers were back until a request was served, where there were none.
    pub back: Option<Duration>,
    pub problems: Vec<String>,
}

/// Tokens that arrived.
struct Progress {
    stream: usize,
    at: Instant,
    tokens: usize,
}

async fn follow(
    mut client: InferenceClient<Channel>,
    request: GenerateRequest,
    stream: usize,
    progress: UnboundedSender<Progress>,
) -> Result<Vec<u32>, Status> {
    let mut events = client.generate(request).await?.into_inner();
    let mut ids = Vec::new();
    while let Some(event) = events.message().await? {
        if let Some(Said::Delta(delta)) = event.event {
            ids.extend(&delta.token_ids);
            let _ = progress.send(Progress { stream, at: Instant::now(), tokens: delta.token_ids.len() });
        }
    }
    Ok(ids)
}

/// Whatever happens, the report says so.
pub async fn run(plan: &Plan, site: &Site, folder: &Folder, expected: &Expected) -> Report {
    let mut workers = Workers::start(plan, site, folder);
    let args: Vec<&str> = workers.of_server.iter().map(String::as_str).chain(["--threads", "1"]).collect();
    let server = Server::start(&args);
    let faults: Vec<Fault> = plan.events.iter().map(|event| event.fault).collect();
    let mut report = Report { seed: plan.seed, faults, ..Report::default() };

    let (sender, mut progress) = unbounded_channel();
    let mut streams = Vec::new();
    for (number, &(prompt, tokens)) in plan.streams.iter().enumerate() {
        let follow = follow(server.client().await, request_of(prompt, tokens), number, sender.clone());
        streams.push(tokio::spawn(async move { tokio::time::timeout(PATIENCE * 2, follow).await }));
    }
    drop(sender);

    // All faults, by tokens seen; what is left when there are no more tokens ends then.
    let mut timeline = Timeline::new(plan);
    while let Ok(Some(step)) = tokio::time::timeout(PATIENCE, progress.recv()).await {
        timeline.take(step, &mut workers);
    }
    let over = Instant::now();
    for (stream, &(prompt, tokens)) in streams.into_iter().zip(&plan.streams) {
        let expected = &expected[&(prompt, plan.is_narrow)][..tokens as usize];
        match stream.await.expect("no panic") {
            Ok(Ok(ids)) if ids == expected => report.exact += 1,
            Ok(Ok(ids)) => {
                let same = ids.iter().zip(expected).take_while(|(a, b)| a == b).count();
                report.problems.push(format!("{} tokens of {}, other ones from {same} on", ids.len(), expected.len()));
            }
            Ok(Err(status)) if status.code() == Code::Unavailable && plan.events[0].fault.is_of_all() => {
                report.unavailable += 1;
            }
            Ok(Err(status)) => report.problems.push(format!("a stream fails: {status}")),
            Err(_) => report.problems.push("a stream hangs".into()),
        }
    }
    report.recovery = timeline.recovery(over);
    if plan.events[0].fault.is_of_all() && report.recovery > Duration::from_millis(1500 + 1500) + SLACK {
        report.problems.push(format!("it took {:?} to fail", report.recovery));
    }
    timeline.end_all(&mut workers);
    let healed = Instant::now();
    heal(&server, &mut report).await;
    if report.unavailable > 0 {
        report.back = Some(healed.elapsed());
    }
    check_end(plan, server, expected, &mut report).await;
    report
}

/// Until a request is served.
async fn heal(server: &Server, report: &mut Report) {
    let (mut client, began) = (server.client().await, Instant::now());
    loop {
        let problem = match tokio::time::timeout(PATIENCE, client.generate_once(request(1))).await {
            Ok(Ok(_)) => return,
            Ok(Err(status)) if status.code() == Code::Unavailable => status.to_string(),
            Ok(Err(status)) => return report.problems.push(format!("after all faults: {status}")),
            Err(_) => return report.problems.push("a request after all faults hangs".into()),
        };
        if began.elapsed() > PATIENCE {
            return report.problems.push(format!("it does not heal: {problem}"));
        }
        tokio::time::sleep(Duration::from_millis(10)).await; // polls
    }
}

/// What comes after all faults is as if there had been none, and the server ends well.
async fn check_end(plan: &Plan, server: Server, expected: &Expected, report: &mut Report) {
    let request = request_of(0, 20);
    let ids = tokio::time::timeout(PATIENCE, stream(&mut server.client().await, request)).await;
    if ids.as_deref() != Ok(&expected[&(0, plan.is_narrow)][..20]) {
        report.problems.push("after all faults: other tokens".into());
    }
    server.terminate();
    let (code, stderr) = tokio::task::spawn_blocking(move || server.wait()).await.expect("no panic");
    if code != Some(0) || stderr.contains("panicked") {
        report.problems.push(format!("the server ends with {code:?}: {stderr}"));
    }
}

/// When what happened.
struct Timeline<'a> {
    /// Events that have not begun.
    coming: Vec<&'a Event>,
    /// Events that have not ended.
    running: Vec<&'a Event>,
    tokens: usize,
    /// Of the first fault.
    began: Option<Instant>,
    /// Of each stream.
    last: Vec<Option<Instant>>,
    usual: Vec<Duration>,
    longest: Duration,
    is_of_all: bool,
}

impl<'a> Timeline<'a> {
    fn new(plan: &'a Plan) -> Self {
        Self {
            coming: plan.events.iter().rev().collect(),
            running: Vec::new(),
            tokens: 0,
            began: None,
            last: vec![None; plan.streams.len()],
            usual: Vec::new(),
            longest: Duration::ZERO,
            is_of_all: plan.events[0].fault.is_of_all(),
        }
    }

    fn take(&mut self, step: Progress, workers: &mut Workers) {
        if let Some(last) = self.last[step.stream].replace(step.at) {
            let gap = step.at.saturating_duration_since(last);
            match self.began {
                Some(began) if step.at > began => self.longest = self.longest.max(gap),
                _ => self.usual.push(gap),
            }
        }
        self.tokens += step.tokens;
        while let Some(event) = self.coming.pop_if(|event| event.begins <= self.tokens) {
            self.begin(event, workers);
        }
        // Who is killed for good, and all of them, come back when the streams are over.
        let (tokens, stays) = (self.tokens, |event: &Event| event.fault == Fault::Kill || event.fault.is_of_all());
        self.running.retain(|event| {
            let is_over = event.ends <= tokens && !stays(event);
            if is_over {
                workers.end(event);
            }
            !is_over
        });
    }

    fn begin(&mut self, event: &'a Event, workers: &mut Workers) {
        self.began.get_or_insert_with(Instant::now);
        workers.begin(event);
        self.running.push(event);
    }

    /// What has not begun never does.
    fn end_all(&mut self, workers: &mut Workers) {
        self.running.drain(..).for_each(|event| workers.end(event));
    }

    fn recovery(&mut self, over: Instant) -> Duration {
        let Some(began) = self.began else { return Duration::ZERO };
        if self.is_of_all {
            return over.saturating_duration_since(began);
        }
        self.usual.sort_unstable();
        let usual = self.usual.get(self.usual.len() / 2).copied().unwrap_or_default();
        self.longest.saturating_sub(usual)
    }
}
