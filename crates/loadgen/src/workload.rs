//! What is asked: job `i` of a workload depends on the seed and `i` alone, so that every target gets the same.

mod azure;
mod texts;

use std::sync::Arc;

use serde_json::{Value, json};

pub use azure::Trace;

use crate::random::{Random, mix};

/// Tokens of a context in which the workloads have their own sizes; smaller ones scale them down.
const FULL_CONTEXT_TOKENS: f64 = 4096.0;
/// Draws of different purposes come from streams of their own.
const DOCUMENT_STREAM: u64 = u64::MAX;
/// Seeds of requests fit 31 bits, which every server takes.
const REQUEST_SEED_BITS: u32 = 31;
/// Ids below this are special or single bytes in many vocabularies.
const TOKEN_ID_MIN: u32 = 300;
/// Tokens left for a chat template and for rounding when texts are cut to fit a context.
const SPARE_TOKENS: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Dispatch of calls to a government hotline: short complaint, short structured answer.
    Hotline,
    /// Drafting of documents: short order, long answer.
    Draft,
    /// Questions over one long shared document.
    Policy,
    /// Lengths like those of the Azure LLM inference traces of 2023.
    Azure,
    /// Random tokens, the same number each time.
    Fixed,
    /// Calls, questions and drafts, by chance: six, three and one of ten.
    Mixed,
}

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// Requests with equal ids are equal.
    pub id: u64,
    pub prompt: Prompt,
    pub max_tokens: u32,
    /// Go on to `max_tokens` whatever the model says.
    pub ignore_eos: bool,
    pub seed: u64,
    pub temperature: f32,
    /// JSON schema of the answer.
    pub schema: Option<Arc<Value>>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// What stands first, often shared, and what is asked.
    Text {
        system: Arc<str>,
        user: String,
    },
    Tokens(Vec<u32>),
}

/// What a workload is made from.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Shape {
    #[serde(serialize_with = "kind_name")]
    pub kind: Kind,
    pub seed: u64,
    /// Tokens of the target's context.
    pub context_tokens: usize,
    /// Multiplies all lengths but those of `fixed` and the document's.
    pub scale: f64,
    pub chars_per_token: f64,
    /// Token ids of `azure` and `fixed` are below this.
    pub vocabulary: u32,
    /// Of the document that `policy` shares.
    pub document_tokens: usize,
    pub prompt_tokens: usize,
    pub output_tokens: usize,
    pub trace: Trace,
    pub temperature: f32,
    /// Ask for a JSON schema where the answer is structured; else its length is forced.
    pub structured: bool,
    /// Ask only this many different requests, over and over.
    pub distinct: Option<u64>,
}

fn kind_name<S: serde::Serializer>(kind: &Kind, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&format!("{kind:?}").to_lowercase())
}

/// The scale that suits a context.
pub fn scale_of(context_tokens: usize) -> f64 {
    (context_tokens as f64 / FULL_CONTEXT_TOKENS).min(1.0)
}

#[derive(Debug)]
pub struct Workload {
    pub shape: Shape,
    /// Stands first in every question over it.
    document: Arc<str>,
    /// Stands first in every call to the hotline.
    rules: Arc<str>,
    schema: Arc<Value>,
}

impl Workload {
    pub fn new(shape: Shape) -> Self {
        let document = if matches!(shape.kind, Kind::Policy | Kind::Mixed) {
            let fits = shape.context_tokens.saturating_sub(shape.scaled(128) + 4 * SPARE_TOKENS);
            let chars = (shape.document_tokens.min(fits) as f64 * shape.chars_per_token) as usize;
            texts::document(chars, &mut Random::new(shape.seed, DOCUMENT_STREAM))
        } else {
            String::new()
        };
        Self {
            shape,
            document: document.into(),
            rules: texts::HOTLINE_RULES.into(),
            schema: Arc::new(work_order_schema()),
        }
    }

    /// The request at a place in the order of requests.
    pub fn job(&self, index: u64) -> Job {
        let shape = &self.shape;
        let id = shape.distinct.map_or(index, |n| index % n);
        let mut random = Random::new(shape.seed, id);
        let kind = match shape.kind {
            Kind::Mixed => [Kind::Hotline, Kind::Policy, Kind::Draft][[0, 0, 0, 0, 0, 0, 1, 1, 1, 2][random.below(10)]],
            kind => kind,
        };
        let text = |system: &Arc<str>, user| Prompt::Text { system: system.clone(), user };
        let (prompt, output) = match kind {
            Kind::Hotline => (text(&self.rules, texts::complaint(&mut random)), shape.scaled(random.between(48, 80))),
            Kind::Policy => (text(&self.document, texts::question(&mut random)), shape.scaled(random.between(96, 128))),
            Kind::Azure => {
                let (prompt, output) = shape.trace.lengths(&mut random, shape.scale, shape.context_tokens);
                (shape.tokens(prompt, &mut random), output)
            }
            Kind::Fixed => (shape.tokens(shape.prompt_tokens, &mut random), shape.output_tokens),
            Kind::Draft | Kind::Mixed => {
                (text(&Arc::from(""), texts::draft_order(&mut random)), shape.scaled(random.between(512, 1024)))
            }
        };
        let schema = (kind == Kind::Hotline && shape.structured).then(|| self.schema.clone());
        Job {
            id,
            prompt,
            // A structured answer ends by itself; the limit is there for models that never get to the end.
            max_tokens: if schema.is_some() { 2 * output as u32 } else { output as u32 },
            ignore_eos: schema.is_none(),
            seed: mix(shape.seed ^ mix(id)) >> (64 - REQUEST_SEED_BITS),
            temperature: shape.temperature,
            schema,
        }
    }
}

impl Shape {
    fn scaled(&self, tokens: usize) -> usize {
        ((tokens as f64 * self.scale).round() as usize).max(4)
    }

    fn tokens(&self, count: usize, random: &mut Random) -> Prompt {
        let low = TOKEN_ID_MIN.min(self.vocabulary / 2);
        let width = (self.vocabulary - low).max(1) as usize;
        Prompt::Tokens((0..count.max(1)).map(|_| low + random.below(width) as u32).collect())
    }
}

/// Text of about `chars` characters, to find out how many tokens it takes.
pub fn sample_text(chars: usize) -> Prompt {
    let text = texts::document(chars, &mut Random::new(0, DOCUMENT_STREAM));
    Prompt::Text { system: "".into(), user: text }
}

/// What a hotline's answer looks like.
fn work_order_schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "category": {"enum": ["噪声", "供水", "供暖", "道路", "环卫", "消防", "物业", "交通", "其他"]},
            "department": {"enum": ["城管局", "住建局", "水务局", "交通局", "消防大队", "街道办事处"]},
            "urgency": {"enum": ["紧急", "较急", "一般"]},
            "location": {"type": "string", "maxLength": 12},
            "summary": {"type": "string", "maxLength": 20}
        },
        "required": ["category", "department", "urgency", "location", "summary"],
        "additionalProperties": false
    })
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn shape(kind: Kind) -> Shape {
        Shape {
            kind,
            seed: 5,
            context_tokens: 4096,
            scale: 1.0,
            chars_per_token: 1.5,
            vocabulary: 4000,
            document_tokens: 1000,
            prompt_tokens: 64,
            output_tokens: 16,
            trace: Trace::Conversation,
            temperature: 0.0,
            structured: false,
            distinct: None,
        }
    }

    const KINDS: [Kind; 6] = [Kind::Hotline, Kind::Draft, Kind::Policy, Kind::Azure, Kind::Fixed, Kind::Mixed];

    #[test]
    fn a_job_depends_on_seed_and_index_alone() {
        for kind in KINDS {
            let (one, other) = (Workload::new(shape(kind)), Workload::new(shape(kind)));
            let backwards: Vec<Job> = (0..20).rev().map(|i| other.job(i)).collect();
            for i in 0..20 {
                assert_eq!(one.job(i), backwards[19 - i as usize], "{kind:?} {i}");
                assert_ne!(one.job(i).seed, one.job(i + 1).seed, "{kind:?} {i}");
                assert_ne!(one.job(i).prompt, one.job(i + 1).prompt, "{kind:?} {i}");
            }
            let elsewhere = Workload::new(Shape { seed: 6, ..shape(kind) });
            assert_ne!(one.job(0), elsewhere.job(0), "{kind:?}");
        }
    }

    #[test]
    fn distinct_requests_come_over_and_over() {
        let workload = Workload::new(Shape { distinct: Some(3), ..shape(Kind::Hotline) });
        assert_eq!(workload.job(1), workload.job(4));
        assert_ne!(workload.job(1), workload.job(3));
    }

    #[test]
    fn a_document_is_shared_and_has_its_length() {
        let workload = Workload::new(shape(Kind::Policy));
        let system = |i| match workload.job(i).prompt {
            Prompt::Text { system, .. } => system,
            Prompt::Tokens(_) => panic!("policy asks in text"),
        };
        assert_eq!(system(0).chars().count(), 1500);
        assert_eq!(system(0), system(7));
        let narrow = Workload::new(Shape { context_tokens: 512, ..shape(Kind::Policy) });
        let Prompt::Text { system, .. } = narrow.job(0).prompt else { panic!("policy asks in text") };
        assert!(system.chars().count() < 512, "cut to the context: {}", system.chars().count());
    }

    #[test]
    fn what_is_structured_ends_by_itself() {
        let check = |kind, structured, has_schema: bool| {
            let job = Workload::new(Shape { structured, ..shape(kind) }).job(0);
            assert_eq!((job.schema.is_some(), job.ignore_eos), (has_schema, !has_schema), "{kind:?} {structured}");
        };
        check(Kind::Hotline, true, true);
        check(Kind::Hotline, false, false);
        check(Kind::Draft, true, false);
    }

    #[test]
    fn fixed_means_fixed() {
        let job = Workload::new(shape(Kind::Fixed)).job(9);
        let Prompt::Tokens(ids) = job.prompt else { panic!("fixed asks in tokens") };
        assert_eq!((ids.len(), job.max_tokens), (64, 16));
        assert!(ids.iter().all(|id| (TOKEN_ID_MIN..4000).contains(id)));
        assert!(job.seed < 1 << REQUEST_SEED_BITS);
    }
}
