//! Golden models, backends, and a small engine that runs sequences in any cut.

#![allow(dead_code)] // Each test file uses a part.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lingqu_backend::{Backend, KvPrecision, KvSpec, KvStore, View};
use lingqu_backend_cpu::{CpuBackend, CpuConfig, Precision};
use lingqu_backend_reference::ReferenceBackend;
use lingqu_model::{Adapter, DraftBatch, Experts, LoadOptions, Model, Package, States, load_with_experts};
use lingqu_types::{AdapterId, Batch, BlockId, SequenceSlice, TokenId};
use serde::Deserialize;

#[derive(Deserialize)]
pub struct Golden {
    pub model: String,
    pub prompts: Vec<Prompt>,
    /// Not with adapters.
    #[serde(default)]
    pub greedy: Vec<Greedy>,
}

#[derive(Deserialize)]
pub struct Prompt {
    pub token_ids: Vec<TokenId>,
    pub logprobs: Vec<Option<f32>>,
    pub top: Vec<Vec<(TokenId, f32)>>,
}

#[derive(Deserialize)]
pub struct Greedy {
    pub prompt: Vec<TokenId>,
    pub continuation: Vec<TokenId>,
    pub margins: Vec<f32>,
}

pub struct GoldenModel {
    /// The name of its `.golden.json`, without that.
    pub name: String,
    pub path: PathBuf,
    pub golden: Golden,
}

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Every model with reference values, by name.
pub fn golden_models() -> Vec<GoldenModel> {
    let folder = root().join("testdata/golden/models");
    let mut models = Vec::new();
    for entry in std::fs::read_dir(&folder).expect("the golden models") {
        let path = entry.expect("a file").path();
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        let Some(name) = file.strip_suffix(".golden.json") else { continue };
        let golden: Golden = serde_json::from_slice(&std::fs::read(&path).unwrap()).expect(&file);
        let path = folder.join(&golden.model);
        if golden.model.contains(".cache/") && !path.exists() {
            println!("skipped {name}: no {} (a script fetches it)", golden.model);
            continue;
        }
        models.push(GoldenModel { name: name.into(), path, golden });
    }
    models.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(models.len() > 20, "only {} golden models", models.len());
    models
}

impl GoldenModel {
    pub fn package(&self) -> Package {
        Package::open(&self.path).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// Whether its graph differs from the others': the fifteen formats of one Llama do not.
    pub fn covers_something_new(&self) -> bool {
        let one_of_many = self.name.starts_with("llama-") || ["default", "smollm2"].contains(&self.name.as_str());
        !one_of_many || ["llama-f16-sharded", "llama-q4_k"].contains(&self.name.as_str())
    }
}

pub fn backends() -> Vec<(&'static str, Arc<dyn Backend>)> {
    let config = CpuConfig { precision: Precision::Int16, ..CpuConfig::default() };
    let cpu = CpuBackend::new(config).expect("a CPU");
    vec![("reference", Arc::new(ReferenceBackend::new())), ("cpu", Arc::new(cpu))]
}

/// SmolLM2-135M-Instruct, where `scripts/fetch_smollm2.sh` has put it.
pub fn smollm2() -> Option<Package> {
    let file = root().join(".cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    file.exists().then(|| Package::open(&file).expect("SmolLM2"))
}

pub fn argmax(values: &[f32]) -> u32 {
    let best = values.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).expect("a vocabulary");
    best.0 as u32
}

/// ln softmax, in f64.
pub fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b)) as f64;
    let sum: f64 = logits.iter().map(|&l| (l as f64 - max).exp()).sum();
    logits.iter().map(|&l| l as f64 - max - sum.ln()).collect()
}

fn rows_of(backend: &dyn Backend, logits: View<'_>) -> Vec<Vec<f32>> {
    let mut values = vec![0.0; logits.rows() * logits.width()];
    if !values.is_empty() {
        backend.read(logits, &mut values).expect("logits");
    }
    values.chunks(logits.width()).map(<[f32]>::to_vec).collect()
}

/// Differences of log-probabilities.
#[derive(Default)]
pub struct Report {
    pub mean: f64,
    pub max: f64,
    pub values: usize,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mean {:.2e}  max {:.2e}  of {} log-probabilities", self.mean, self.max, self.values)
    }
}

const ROWS_MAX: usize = 128;
const CONTEXT_MAX: usize = 320;
const BLOCK_TOKENS: usize = 16;
const SEQUENCES_MAX: usize = 8;

/// A loaded model with its cache.
pub struct Runner {
    model: Box<dyn Model>,
    backend: Arc<dyn Backend>,
    kv: KvStore,
    /// By sequence: what [`Runner::logits_of`] runs is sequence 3.
    pub adapters: [Option<AdapterId>; SEQUENCES_MAX],
}

/// One sequence on its way.
struct Running<'a> {
    tokens: &'a [TokenId],
    done: usize,
    blocks: Vec<BlockId>,
}

impl Runner {
    pub fn new(package: &Package, backend: Arc<dyn Backend>) -> Self {
        Self::with_experts(package, backend, Experts::Here)
    }

    pub fn with_experts(package: &Package, backend: Arc<dyn Backend>, experts: Experts) -> Self {
        Self::load(package, backend, experts, false)
    }

    /// With the model's prediction layer.
    pub fn that_predicts(package: &Package, backend: Arc<dyn Backend>) -> Self {
        Self::load(package, backend, Experts::Here, true)
    }

    fn load(package: &Package, backend: Arc<dyn Backend>, experts: Experts, speculate: bool) -> Self {
        let options = LoadOptions {
            batch_rows_max: ROWS_MAX,
            logit_rows_max: ROWS_MAX,
            context_tokens_max: CONTEXT_MAX,
            speculate,
        };
        let mut last = None;
        let model =
            load_with_experts(package, backend.clone(), &options, experts, &mut |progress| last = Some(progress));
        let model = model.unwrap_or_else(|error| panic!("{}: {error}", package.config.name));
        let last = last.expect("progress is told");
        assert_eq!(last.bytes_done, last.bytes_total, "{}", package.config.name);
        let spec = KvSpec {
            layers: model.layers(),
            blocks: SEQUENCES_MAX * CONTEXT_MAX / BLOCK_TOKENS,
            block_tokens: BLOCK_TOKENS,
            entry: model.kv_entry(),
            precision: KvPrecision::Full,
        };
        let kv = backend.alloc_kv(&spec).expect("a cache");
        Self { model, backend, kv, adapters: [None; SEQUENCES_MAX] }
    }

    pub fn load_adapter(&mut self, adapter: &Adapter) -> AdapterId {
        self.model.load_adapter(adapter).unwrap_or_else(|error| panic!("{}: {error}", adapter.name))
    }

    fn forward(&mut self, batch: &Batch) -> Vec<Vec<f32>> {
        assert_eq!(batch.validate(BLOCK_TOKENS), Ok(()));
        let vocab = self.model.config().vocab_size;
        let logits = self.model.forward(batch, &mut self.kv).expect("a forward");
        assert_eq!((logits.rows(), logits.width()), (batch.logit_rows.len(), vocab));
        rows_of(&*self.backend, logits)
    }

    fn draft(&mut self, rows: &DraftBatch) -> Vec<Vec<f32>> {
        assert_eq!(rows.batch.validate(BLOCK_TOKENS), Ok(()));
        let logits = self.model.draft(rows, &mut self.kv).expect("a draft");
        assert_eq!(logits.rows(), rows.batch.logit_rows.len());
        rows_of(&*self.backend, logits)
    }

    /// What the prediction layer says after every token of a text, computed in chunks of these sizes; and what it says
    /// after its own guess behind the last. `[tokens + 1][vocab]`
    pub fn drafts_of(&mut self, tokens: &[TokenId], chunks: &[usize]) -> Vec<Vec<f32>> {
        let batch = |tokens: &[TokenId], context: usize| Batch {
            sequences: vec![SequenceSlice { rows: 0..tokens.len(), context, blocks: Self::blocks(2), adapter: None }],
            tokens: tokens.to_vec(),
            logit_rows: (0..tokens.len() as u32).collect(),
        };
        let mut said = self.draft(&DraftBatch { batch: batch(&tokens[..1], 0), states: States::Unknown });
        let (mut done, mut last_draft) = (0, 1);
        for &chunk in chunks.iter().cycle() {
            let end = tokens.len().min(done + chunk);
            if end == done {
                break;
            }
            self.forward(&batch(&tokens[done..end], done));
            // The tokens after those rows, as far as there are any.
            let next = &tokens[done + 1..tokens.len().min(end + 1)];
            if !next.is_empty() {
                let states = States::OfForward((0..next.len() as u32).collect());
                said.extend(self.draft(&DraftBatch { batch: batch(next, done + 1), states }));
                last_draft = next.len();
            }
            done = end;
        }
        let guess = argmax(said.last().expect("a token"));
        let states = States::OfDraft(vec![last_draft as u32 - 1]);
        said.extend(self.draft(&DraftBatch { batch: batch(&[guess], tokens.len()), states }));
        said
    }

    /// The block table of sequence `index`: blocks in an order of its own, so that tables matter.
    fn blocks(index: usize) -> Vec<BlockId> {
        let per_sequence = CONTEXT_MAX / BLOCK_TOKENS;
        (0..per_sequence).map(|i| BlockId(((per_sequence - 1 - i) * SEQUENCES_MAX + index) as u32)).collect()
    }

    /// Logits after every token of a text. `[tokens][vocab]`
    pub fn logits_of(&mut self, tokens: &[TokenId]) -> Vec<Vec<f32>> {
        self.logits_in_chunks(tokens, &[ROWS_MAX])
    }

    /// The same, cut in chunks of these sizes, over and over.
    pub fn logits_in_chunks(&mut self, tokens: &[TokenId], chunks: &[usize]) -> Vec<Vec<f32>> {
        let (mut logits, mut done) = (Vec::new(), 0);
        for &chunk in chunks.iter().cycle() {
            let rows = chunk.min(tokens.len() - done);
            if rows == 0 {
                break;
            }
            logits.extend(self.forward(&Batch {
                tokens: tokens[done..done + rows].to_vec(),
                sequences: vec![SequenceSlice {
                    rows: 0..rows,
                    context: done,
                    blocks: Self::blocks(3),
                    adapter: self.adapters[3],
                }],
                logit_rows: (0..rows as u32).collect(),
            }));
            done += rows;
        }
        logits
    }

    /// Logits after the last token of each of several texts that run side by side, each step taking the next of
    /// `chunks` tokens of each. `[texts][vocab]`
    pub fn last_logits(&mut self, texts: &[&[TokenId]], chunks: &[usize]) -> Vec<Vec<f32>> {
        assert!(texts.len() <= SEQUENCES_MAX);
        let mut running: Vec<Running> =
            (0..texts.len()).map(|i| Running { tokens: texts[i], done: 0, blocks: Self::blocks(i) }).collect();
        let mut last = vec![Vec::new(); texts.len()];
        for step in 0.. {
            let (mut batch, mut finished) = (Batch::default(), Vec::new());
            for (i, s) in running.iter_mut().enumerate() {
                let rows = chunks[(step + i) % chunks.len()].min(s.tokens.len() - s.done);
                if rows == 0 {
                    continue;
                }
                let first = batch.rows();
                batch.tokens.extend(&s.tokens[s.done..s.done + rows]);
                let slice = SequenceSlice {
                    rows: first..first + rows,
                    context: s.done,
                    blocks: s.blocks.clone(),
                    adapter: self.adapters[i],
                };
                batch.sequences.push(slice);
                s.done += rows;
                if s.done == s.tokens.len() {
                    batch.logit_rows.push(batch.rows() as u32 - 1);
                    finished.push(i);
                }
            }
            if batch.rows() == 0 {
                return last;
            }
            for (i, logits) in finished.into_iter().zip(self.forward(&batch)) {
                last[i] = logits;
            }
        }
        unreachable!("every text ends")
    }

    /// Against the golden values: the log-probability of each next token and of the likeliest at each position.
    pub fn compare(&mut self, model: &GoldenModel) -> Report {
        let (mut report, mut sum) = (Report::default(), 0.0);
        for prompt in &model.golden.prompts {
            let logits = self.logits_of(&prompt.token_ids);
            let mut compare = |found: f64, expected: f32| {
                let difference = (found - f64::from(expected)).abs();
                assert!(difference.is_finite(), "{}: {found} is no log-probability", model.name);
                sum += difference;
                report.max = report.max.max(difference);
                report.values += 1;
            };
            for (t, logits) in logits.iter().enumerate() {
                let found = log_softmax(logits);
                if let Some(&next) = prompt.token_ids.get(t + 1) {
                    compare(found[next as usize], prompt.logprobs[t + 1].expect("every token but the first has one"));
                }
                for &(token, expected) in &prompt.top[t] {
                    compare(found[token as usize], expected);
                }
            }
        }
        report.mean = sum / report.values as f64;
        report
    }
}
