//! Sends a workload to a target, by a closed or an open loop, and hands on what came of each request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::random::Random;
use crate::record::{Record, Times};
use crate::schedule::{Arrivals, Poisson, Window};
use crate::target::{Answer, Listening, Target};
use crate::workload::Workload;

/// Results on the way to the one who counts them.
const RESULTS_MAX: usize = 1024;
/// A user whose request failed waits at least this long, lest a refusing server be flooded.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(50);
/// Draws of the users' thinking have streams of their own, counted from here.
const THINKING_STREAM: u64 = 1 << 63;

#[derive(Clone, Debug)]
pub struct Plan {
    pub arrivals: Arrivals,
    pub warm_up: Duration,
    /// Of the window. None: until `requests_max`.
    pub length: Option<Duration>,
    /// Requests in all, those of the warm-up included.
    pub requests_max: u64,
    /// Requests open at the same time.
    pub in_flight_max: usize,
    pub request_timeout: Duration,
    pub seed: u64,
}

/// One request's end.
#[derive(Debug)]
pub struct Done {
    pub record: Record,
    pub answer: Option<Answer>,
}

/// How the whole run went.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// From the end of the warm-up to the end of the window.
    pub window_s: f64,
    /// Arrivals of an open loop that were due but never sent, since `in_flight_max` requests were open.
    pub not_sent: u64,
}

struct Loop {
    target: Arc<Target>,
    workload: Arc<Workload>,
    window: Window,
    request_timeout: Duration,
    results: mpsc::Sender<Done>,
}

impl Loop {
    /// Asks one request, due at a time that may have passed. True when it was answered.
    async fn ask(&self, request: u64, due: Instant) -> bool {
        let job = self.workload.job(request);
        let mut listening = Listening::default();
        let sent = Instant::now();
        let reply = self.target.ask_within(self.request_timeout, &job, &mut listening).await;
        let times = Times { request, job: job.id, due, sent, ended: Instant::now() };
        let record = Record::new(times, &listening, &reply, &self.window);
        let is_answered = reply.is_ok();
        let answer = reply.ok().map(|reply| reply.answer);
        let _ = self.results.send(Done { record, answer }).await; // the receiver outlives all loops
        is_answered
    }
}

/// Runs a plan to its end; `take` gets every result in the order of ends.
pub async fn drive(target: Arc<Target>, workload: Arc<Workload>, plan: &Plan, mut take: impl FnMut(Done)) -> Outcome {
    let window = Window::new(Instant::now(), plan.warm_up, plan.length, plan.requests_max);
    let (results, mut arrived) = mpsc::channel(RESULTS_MAX);
    let request_timeout = plan.request_timeout;
    let work = Arc::new(Loop { target, workload, window, request_timeout, results });
    let sending = match plan.arrivals {
        Arrivals::Closed { users, think_s } => {
            tokio::spawn(closed(work, users.min(plan.in_flight_max), think_s, plan.seed))
        }
        Arrivals::Open { requests_per_s } => {
            tokio::spawn(open(work, Poisson::new(requests_per_s, plan.seed), plan.in_flight_max))
        }
    };
    while let Some(done) = arrived.recv().await {
        take(done);
    }
    let ended = window.closes.unwrap_or_else(Instant::now);
    let not_sent = sending.await.expect("the loop does not panic");
    Outcome { window_s: ended.saturating_duration_since(window.opens).as_secs_f64(), not_sent }
}

async fn closed(work: Arc<Loop>, users: usize, think_s: f64, seed: u64) -> u64 {
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for user in 0..users {
        let (work, next) = (work.clone(), next.clone());
        let mut random = Random::new(seed, THINKING_STREAM + user as u64);
        tasks.spawn(async move {
            loop {
                let (request, due) = (next.fetch_add(1, Ordering::Relaxed), Instant::now());
                if !work.window.may_start(request, due) {
                    return;
                }
                if !work.ask(request, due).await {
                    tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
                }
                if think_s > 0.0 {
                    tokio::time::sleep(Duration::from_secs_f64(random.exponential(think_s))).await;
                }
            }
        });
    }
    while tasks.join_next().await.is_some() {}
    0
}

async fn open(work: Arc<Loop>, arrivals: Poisson, in_flight_max: usize) -> u64 {
    let places = Arc::new(Semaphore::new(in_flight_max));
    let mut tasks = JoinSet::new();
    let mut not_sent = 0;
    for (request, at_s) in (0..).zip(arrivals) {
        let due = work.window.start + Duration::from_secs_f64(at_s);
        if !work.window.may_start(request, due) {
            break;
        }
        tokio::time::sleep_until(due.into()).await;
        while tasks.try_join_next().is_some() {}
        // A place that comes free after the window closed is of no use: what is still due then was never sent.
        let place = match work.window.closes {
            Some(closes) => tokio::time::timeout_at(closes.into(), places.clone().acquire_owned()).await.ok(),
            None => Some(places.clone().acquire_owned().await),
        };
        let Some(place) = place else {
            not_sent += 1;
            continue;
        };
        let work = work.clone();
        tasks.spawn(async move {
            let _place = place.expect("the semaphore is never closed");
            work.ask(request, due).await;
        });
    }
    while tasks.join_next().await.is_some() {}
    not_sent
}
