//! Every answer against the answer to the same request when nothing else is asked.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::random::mix;
use crate::target::{Answer, Listening, Target};
use crate::workload::Workload;

/// Different requests whose answers are kept.
const JOBS_MAX: usize = 100_000;
/// Different answers to one request that are kept; there should be one.
const VARIANTS_MAX: usize = 4;
/// Mismatches that are described.
const EXAMPLES_MAX: usize = 8;
/// Tries of one request alone, while a server is still busy with what came before.
const TRIES: usize = 100;

/// Answers that came under load, by job.
#[derive(Debug)]
pub struct Answers {
    share: f64,
    jobs: BTreeMap<u64, Vec<Variant>>,
    /// Answers that were not kept.
    beyond: u64,
}

#[derive(Debug)]
struct Variant {
    answer: Answer,
    count: u64,
    first_request: u64,
}

impl Answers {
    /// Keeps the answers to this share of all different requests.
    pub fn new(share: f64) -> Self {
        Self { share, jobs: BTreeMap::new(), beyond: 0 }
    }

    pub fn add(&mut self, request: u64, job: u64, answer: Answer) {
        if mix(job) as f64 / u64::MAX as f64 > self.share {
            return;
        }
        if !self.jobs.contains_key(&job) && self.jobs.len() >= JOBS_MAX {
            self.beyond += 1;
            return;
        }
        let variants = self.jobs.entry(job).or_default();
        if let Some(variant) = variants.iter_mut().find(|variant| variant.answer == answer) {
            variant.count += 1;
        } else if variants.len() < VARIANTS_MAX {
            variants.push(Variant { answer, count: 1, first_request: request });
        } else {
            self.beyond += 1;
        }
    }

    /// Asks each request again, one after the other, and compares.
    pub async fn verify(self, target: &Target, workload: &Workload, limit: Duration) -> Verdict {
        let mut verdict = Verdict { not_kept: self.beyond, ..Verdict::default() };
        for (job, variants) in self.jobs {
            let alone = ask_alone(target, workload, job, limit).await;
            for variant in variants {
                let is_equal = alone.as_ref().is_ok_and(|answer| *answer == variant.answer);
                if is_equal {
                    verdict.equal += variant.count;
                    continue;
                }
                verdict.different += variant.count;
                if verdict.examples.len() < EXAMPLES_MAX {
                    let alone = match &alone {
                        Ok(answer) => shown(answer, &variant.answer),
                        Err(message) => format!("failed: {message}"),
                    };
                    let under_load = shown(&variant.answer, &variant.answer);
                    verdict
                        .examples
                        .push(format!("request {} (job {job}): {under_load}; alone: {alone}", variant.first_request));
                }
            }
        }
        verdict
    }
}

async fn ask_alone(target: &Target, workload: &Workload, job: u64, limit: Duration) -> Result<Answer, String> {
    let mut last = String::new();
    for _ in 0..TRIES {
        match target.ask_within(limit, &workload.job(job), &mut Listening::default()).await {
            Ok(reply) => return Ok(reply.answer),
            Err(failure) => last = failure.message,
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(last)
}

/// An answer's length, and the place where it leaves the other.
fn shown(answer: &Answer, other: &Answer) -> String {
    let differ = |at: Option<usize>| at.map_or(String::new(), |at| format!(", apart from {at} on"));
    match (answer, other) {
        (Answer::Tokens(a), Answer::Tokens(b)) => {
            let at = (0..a.len().max(b.len())).find(|&i| a.get(i) != b.get(i));
            format!("{} tokens{}", a.len(), differ(at))
        }
        (Answer::Text(a), Answer::Text(b)) => {
            let (a, b) = (a.as_bytes(), b.as_bytes());
            let at = (0..a.len().max(b.len())).find(|&i| a.get(i) != b.get(i));
            format!("{} bytes{}", a.len(), differ(at))
        }
        _ => "of another kind".into(),
    }
}

/// How the comparison came out.
#[derive(Debug, Default)]
pub struct Verdict {
    pub equal: u64,
    pub different: u64,
    /// Answers that could not be kept for comparison.
    pub not_kept: u64,
    pub examples: Vec<String>,
}

impl Verdict {
    pub fn is_good(&self) -> bool {
        self.different == 0 && self.not_kept == 0 && self.equal > 0
    }

    pub fn to_json(&self) -> Value {
        json!({
            "equal": self.equal, "different": self.different, "not_kept": self.not_kept, "examples": self.examples
        })
    }
}
