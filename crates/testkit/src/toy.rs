//! A toy model and its toy device: cheap, and strict about what a batch says.
//!
//! The logits of a row are a hash of every token of its sequence and its position, read back from a paged cache through
//! the block table. A wrong block, a wrong position, a lost or overwritten cache cell: each changes the answer. The
//! same context gives the same bits, alone or in any batch.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use lingqu_backend::{
    AttentionSpec, Backend, BackendError, Buffer, Capabilities, ExpertWeights, FfnSource, FfnWeights, HostRouting,
    KvEntry, KvSpec, KvStore, LinearSource, Result, RopePairing, RouteSpec, Routing, Step, View, ViewMut, Weight,
};
use lingqu_model::{AttentionConfig, DraftBatch, GqaConfig, Model, ModelConfig, RopeConfig, RopeScaling, States};
use lingqu_tensor::{HostTensor, TensorError};
use lingqu_types::{AdapterId, Batch, BlockId, Limits, TokenId};

use crate::rng::mix;

/// Token ids are below this.
pub const TOY_VOCAB: usize = 61;
/// Adapters of every toy: each changes what the cache holds, and so every answer.
pub const TOY_ADAPTERS: [&str; 2] = ["alpha", "beta"];

/// Tokens that make the toy misbehave when a batch computes them.
#[derive(Clone, Copy, Debug, Default)]
pub struct ToyFaults {
    /// The step fails; the device stays.
    pub out_of_memory: Option<TokenId>,
    /// The step fails; the device is gone.
    pub device_lost: Option<TokenId>,
    pub panic: Option<TokenId>,
    /// The logits of this token's row are NaN.
    pub nan: Option<TokenId>,
}

/// Watches a toy at work, and holds it up.
#[derive(Debug, Default)]
pub struct ToyControl {
    steps: AtomicUsize,
    sequences_max: AtomicUsize,
    held: Mutex<bool>,
    released: Condvar,
}

impl ToyControl {
    /// Steps computed so far.
    pub fn steps(&self) -> usize {
        self.steps.load(Ordering::SeqCst)
    }

    /// Most sequences seen in one batch.
    pub fn sequences_max(&self) -> usize {
        self.sequences_max.load(Ordering::SeqCst)
    }

    /// Holds up the next steps until [`ToyControl::release`].
    pub fn hold(&self) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    pub fn release(&self) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.released.notify_all();
    }

    fn pass(&self, batch: &Batch) {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.released.wait_while(held, |held| *held).unwrap_or_else(PoisonError::into_inner));
        self.steps.fetch_add(1, Ordering::SeqCst);
        self.sequences_max.fetch_max(batch.sequences.len(), Ordering::SeqCst);
    }
}

/// See the module.
pub struct ToyModel {
    config: ModelConfig,
    limits: Limits,
    faults: ToyFaults,
    control: Arc<ToyControl>,
    logits: Buffer,
    prediction: Option<ToyPrediction>,
    adapters: [Arc<str>; 2],
}

/// A prediction layer: right three times out of four, if it is given the states it should be.
#[derive(Default)]
struct ToyPrediction {
    /// Of each row of the last forward, a hash of all tokens up to it. `[rows]`
    states: Vec<u64>,
    /// The same of the last draft. `[logit_rows]`
    drafted: Vec<u64>,
}

impl ToyModel {
    pub fn new(limits: &Limits, faults: ToyFaults) -> (Self, Arc<ToyControl>) {
        let control = Arc::new(ToyControl::default());
        let config = ModelConfig {
            name: "toy".into(),
            architecture: "toy",
            vocab_size: TOY_VOCAB,
            hidden: 2,
            layers: 1,
            prediction_layers: 0,
            context_tokens_max: limits.context_tokens_max,
            rms_norm_eps: 1e-6,
            attention: AttentionConfig::Gqa(GqaConfig {
                heads: 1,
                kv_heads: 1,
                head_dim: 2,
                qkv_bias: false,
                output_bias: false,
            }),
            rope: RopeConfig { theta: 1e4, dim: 2, pairing: RopePairing::Half, scaling: RopeScaling::None },
            ffn_intermediate: 2,
            moe: None,
            tied_embeddings: false,
        };
        let logits = ToyBackend::default().alloc(limits.logit_rows_max, TOY_VOCAB).expect("a vector");
        let adapters = TOY_ADAPTERS.map(Arc::from);
        let control_too = control.clone();
        (Self { config, limits: limits.clone(), faults, control, logits, prediction: None, adapters }, control_too)
    }

    /// With a prediction layer.
    pub fn that_predicts(self) -> Self {
        Self { prediction: Some(ToyPrediction::default()), ..self }
    }

    fn misbehave(&self, batch: &Batch) -> Result<()> {
        let has = |token: Option<TokenId>| token.is_some_and(|token| batch.tokens.contains(&token));
        assert!(!has(self.faults.panic), "the toy was told to panic");
        if has(self.faults.out_of_memory) {
            return Err(BackendError::OutOfMemory { what: "a toy".into(), bytes: 1 });
        }
        if has(self.faults.device_lost) {
            return Err(BackendError::Device { backend: "toy".into(), problem: "unplugged".into() });
        }
        Ok(())
    }
}

impl Model for ToyModel {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn kv_entry(&self) -> KvEntry {
        self.config.kv_entry()
    }

    fn layers(&self) -> usize {
        1
    }

    fn adapters(&self) -> &[Arc<str>] {
        &self.adapters
    }

    fn forward(&mut self, batch: &Batch, kv: &mut KvStore) -> Result<View<'_>> {
        self.control.pass(batch);
        let block_tokens = kv.spec().block_tokens;
        batch.validate(block_tokens).expect("a valid batch");
        assert!(batch.rows() <= self.limits.batch_rows_max, "too many rows");
        self.misbehave(batch)?;
        let cells = kv.storage_mut::<Vec<u64>>();
        let mut wanted = batch.logit_rows.iter().map(|&row| row as usize).peekable();
        self.logits.set_rows(batch.logit_rows.len());
        let mut states = Vec::new();
        let mut logits = self.logits.storage_mut::<Vec<f32>>().chunks_exact_mut(TOY_VOCAB);
        for sequence in &batch.sequences {
            let at = |p: usize| sequence.blocks[p / block_tokens].0 as usize * block_tokens + p % block_tokens;
            let mut digest = (0..sequence.context).fold(0, |digest, position| fold(digest, cells[at(position)]));
            for (row, position) in sequence.rows.clone().zip(sequence.context..) {
                cells[at(position)] = cell(batch.tokens[row], position, sequence.adapter);
                digest = fold(digest, cells[at(position)]);
                states.push(digest);
                if wanted.next_if_eq(&row).is_some() {
                    let out = logits.next().expect("counted by logit_rows"); // [vocab]
                    write_logits(digest, out);
                    if self.faults.nan == Some(batch.tokens[row]) {
                        out.fill(f32::NAN);
                    }
                }
            }
        }
        if let Some(prediction) = &mut self.prediction {
            prediction.states = states;
        }
        Ok(self.logits.view())
    }

    fn predicts(&self) -> bool {
        self.prediction.is_some()
    }

    fn draft(&mut self, rows: &DraftBatch, kv: &mut KvStore) -> Result<View<'_>> {
        let prediction = self.prediction.as_mut().expect("it predicts");
        let block_tokens = kv.spec().block_tokens;
        let batch = &rows.batch;
        batch.validate(block_tokens).expect("a valid batch");
        assert!(batch.rows() <= self.limits.batch_rows_max, "too many rows");
        let cells = kv.storage_mut::<Vec<u64>>();
        self.logits.set_rows(batch.logit_rows.len());
        let mut logits = self.logits.storage_mut::<Vec<f32>>().chunks_exact_mut(TOY_VOCAB);
        let mut drafted = Vec::new();
        for sequence in &batch.sequences {
            let at = |p: usize| sequence.blocks[p / block_tokens].0 as usize * block_tokens + p % block_tokens;
            for (row, position) in sequence.rows.clone().zip(sequence.context..) {
                let state = match &rows.states {
                    States::Unknown => 0,
                    States::OfForward(from) => {
                        let state = prediction.states[from[row] as usize];
                        let expected = (0..position).fold(0, |digest, p| fold(digest, cells[at(p)]));
                        assert_eq!(state, expected, "not the state before position {position}");
                        state
                    }
                    States::OfDraft(from) => prediction.drafted[from[row] as usize],
                };
                let digest = fold(state, cell(batch.tokens[row], position, sequence.adapter));
                if batch.logit_rows.contains(&(row as u32)) {
                    drafted.push(digest);
                    let is_wrong = digest.is_multiple_of(4);
                    write_logits(if is_wrong { mix(digest) } else { digest }, logits.next().expect("counted"));
                }
            }
        }
        prediction.drafted = drafted;
        Ok(self.logits.view())
    }
}

/// What the toy says after these tokens, without any batch or cache. `[vocab]`
pub fn toy_logits(context: &[TokenId]) -> Vec<f32> {
    adapted_logits(context, None)
}

/// The same with one of [`TOY_ADAPTERS`]. `[vocab]`
pub fn adapted_logits(context: &[TokenId], adapter: Option<AdapterId>) -> Vec<f32> {
    let next = |digest, (&token, position)| fold(digest, cell(token, position, adapter));
    let digest = context.iter().zip(0..).fold(0, next);
    let mut logits = vec![0.0; TOY_VOCAB];
    write_logits(digest, &mut logits);
    logits
}

/// What the cache holds for a token at its position.
fn cell(token: TokenId, position: usize, adapter: Option<AdapterId>) -> u64 {
    mix(u64::from(token) << 32 | position as u64) ^ adapter.map_or(0, |adapter| mix(u64::from(adapter.0) + 1))
}

fn fold(digest: u64, cell: u64) -> u64 {
    mix(digest ^ cell)
}

/// Logits from -4 to 4. `[vocab]`
fn write_logits(digest: u64, out: &mut [f32]) {
    for (token, value) in out.iter_mut().enumerate() {
        let bits = mix(digest ^ token as u64) >> 40; // 24 bits
        *value = bits as f32 / (1 << 21) as f32 - 4.0;
    }
}

/// Memory and nothing else: the toy computes on the host.
pub struct ToyBackend {
    capabilities: Capabilities,
    /// Calls of `settle` after which all weights have settled.
    unsettled: AtomicUsize,
    /// Whether the last of these calls finds that they are broken.
    broken: bool,
}

impl Default for ToyBackend {
    fn default() -> Self {
        let (name, weight_formats) = ("toy".into(), Vec::new());
        let capabilities = Capabilities { name, weight_formats, host_memory: true, checks_numbers: false };
        Self { capabilities, unsettled: AtomicUsize::new(0), broken: false }
    }
}

impl ToyBackend {
    /// One whose weights have settled after so many calls.
    pub fn settling(calls: usize) -> Self {
        Self { unsettled: AtomicUsize::new(calls), ..Self::default() }
    }

    /// One whose weights are found to be broken by the last of so many calls.
    pub fn breaking(calls: usize) -> Self {
        Self { broken: true, ..Self::settling(calls) }
    }

    /// Calls after which its weights will have settled.
    pub fn unsettled(&self) -> usize {
        self.unsettled.load(Ordering::Relaxed)
    }

    /// One that says its memory is not the host's.
    pub fn far() -> Self {
        let mut backend = Self::default();
        backend.capabilities.host_memory = false;
        backend
    }
}

const NO_OP: &str = "the toy has no such op";

impl Backend for ToyBackend {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn settle(&self, _: Duration) -> Result<bool> {
        let left = self.unsettled().saturating_sub(1);
        self.unsettled.store(left, Ordering::Relaxed);
        if self.broken && left == 0 {
            return Err(TensorError { name: "w".into(), problem: "is broken".into() }.into());
        }
        Ok(left == 0)
    }

    fn alloc(&self, rows_max: usize, cols: usize) -> Result<Buffer> {
        Ok(Buffer::new(rows_max, cols, vec![0f32; rows_max * cols]))
    }

    fn alloc_kv(&self, spec: &KvSpec) -> Result<KvStore> {
        Ok(KvStore::new(spec.clone(), vec![0u64; spec.blocks * spec.block_tokens]))
    }

    fn kv_copy(&self, kv: &mut KvStore, pairs: &[(BlockId, BlockId)]) -> Result<()> {
        let tokens = kv.spec().block_tokens;
        let cells = kv.storage_mut::<Vec<u64>>();
        let before = cells.clone();
        for (from, to) in pairs.iter().map(|(from, to)| (from.0 as usize * tokens, to.0 as usize * tokens)) {
            cells[to..to + tokens].copy_from_slice(&before[from..from + tokens]);
        }
        Ok(())
    }

    fn read(&self, x: View<'_>, out: &mut [f32]) -> Result<()> {
        out.copy_from_slice(&x.buffer.storage::<Vec<f32>>()[..x.rows() * x.buffer.cols()]);
        Ok(())
    }

    fn alloc_routing(&self, _: usize, _: usize) -> Result<Routing> {
        unimplemented!("{NO_OP}")
    }

    fn write(&self, _: &[f32], _: ViewMut<'_>) -> Result<()> {
        unimplemented!("{NO_OP}")
    }

    fn read_routing(&self, _: &Routing) -> Result<HostRouting> {
        unimplemented!("{NO_OP}")
    }

    fn write_routing(&self, _: &HostRouting, _: &mut Routing) -> Result<()> {
        unimplemented!("{NO_OP}")
    }

    fn upload_table(&self, _: &HostTensor) -> Result<Weight> {
        unimplemented!("{NO_OP}")
    }

    fn upload_embedding(&self, _: &HostTensor) -> Result<Weight> {
        unimplemented!("{NO_OP}")
    }

    fn upload_linear(&self, _: LinearSource<'_>) -> Result<Weight> {
        unimplemented!("{NO_OP}")
    }

    fn upload_heads(&self, _: &[HostTensor]) -> Result<Weight> {
        unimplemented!("{NO_OP}")
    }

    fn upload_ffn(&self, _: &FfnSource) -> Result<FfnWeights> {
        unimplemented!("{NO_OP}")
    }

    fn upload_experts(&self, _: &[FfnSource]) -> Result<ExpertWeights> {
        unimplemented!("{NO_OP}")
    }

    fn begin_step(&self, _: &Batch, _: usize) -> Result<Step> {
        unimplemented!("{NO_OP}")
    }

    fn embed(&self, _: &Step, _: &Weight, _: ViewMut<'_>) -> Result<()> {
        unimplemented!("{NO_OP}")
    }

    fn rms_norm(&self, _: View<'_>, _: &Weight, _: f32, _: ViewMut<'_>) -> Result<()> {
        unimplemented!("{NO_OP}")
    }

    fn linear(&self, _: View<'_>, _: &Weight, _: ViewMut<'_>) -> Result<()> {
        unimplemented!("{NO_OP}")
    }

    fn linear_heads(&self, _: View<'_>, _: &Weight, _: ViewMut<'_>) -> Result<()> {
        unimplemented!("{NO_OP}")
    }

    fn rope(&self, _: &Step, _: View<'_>, _: &Weight, _: RopePairing, _: ViewMut<'_>) -> Result<()> {
        unimplemented!("{NO_OP}")
    }

    fn kv_append(&self, _: &Step, _: &mut KvStore, _: usize, _: View<'_>, _: Option<View<'_>>) -> Result<()> {
        unimplemented!("{NO_OP}")
    }

    fn attention(&self, _: &Step, _: View<'_>, _: &KvStore, _: AttentionSpec, _: ViewMut<'_>) -> Result<()> {
        unimplemented!("{NO_OP}")
    }

    fn ffn(&self, _: View<'_>, _: &FfnWeights, _: ViewMut<'_>) -> Result<()> {
        unimplemented!("{NO_OP}")
    }

    fn route(&self, _: View<'_>, _: Option<&Weight>, _: &RouteSpec, _: &mut Routing) -> Result<()> {
        unimplemented!("{NO_OP}")
    }

    fn experts(&self, _: View<'_>, _: &Routing, _: &ExpertWeights, _: ViewMut<'_>) -> Result<()> {
        unimplemented!("{NO_OP}")
    }

    fn combine(&self, _: View<'_>, _: &Routing, _: ViewMut<'_>) -> Result<()> {
        unimplemented!("{NO_OP}")
    }

    fn add(&self, _: View<'_>, _: ViewMut<'_>) -> Result<()> {
        unimplemented!("{NO_OP}")
    }

    fn gather_logit_rows(&self, _: &Step, _: View<'_>, _: ViewMut<'_>) -> Result<()> {
        unimplemented!("{NO_OP}")
    }
}
