//! The step loop: take the mail, plan, compute, draw, tell; again.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lingqu_backend::{Backend, BackendError, KvSpec, KvStore};
use lingqu_model::Model;
use lingqu_sampler::TokenMask;
use lingqu_scheduler::{NewSequence, Scheduler, SchedulerConfig, SliceOutcome, StepPlan};
use lingqu_types::{Batch, FinishReason, RequestId, SequenceSlice};

use crate::draw::{self, FarLogits};
use crate::mailbox::{Mail, Mailbox};
use crate::request::{Active, Submission};
use crate::{EngineConfig, EngineError, speculate};

/// Until its weights have settled, the backend is given so many times as long as a step took, after each, in turns of
/// so long, after which new mail goes first.
const SETTLE_STEPS: u32 = 2;
const SETTLE_TURN: Duration = Duration::from_millis(20);

/// All that the engine's thread owns.
pub(crate) struct StepLoop {
    config: EngineConfig,
    model: Box<dyn Model>,
    backend: Arc<dyn Backend>,
    kv: KvStore,
    scheduler: Scheduler,
    mailbox: Arc<Mailbox>,
    /// Every request that the scheduler knows.
    requests: BTreeMap<RequestId, Active>,
    /// Of the requests that have one, the soonest first.
    deadlines: BTreeSet<(Instant, RequestId)>,
    batch: Batch,
    /// `[logit_rows_max, vocab]`
    logits: Vec<f32>,
    outcomes: Vec<SliceOutcome>,
    /// What a grammar allows, one request after the other. `[vocab]`
    mask: TokenMask,
    vocab: usize,
}

impl StepLoop {
    /// Allocates the cache and the buffers; `config.limits` are valid.
    pub fn new(
        model: Box<dyn Model>,
        backend: Arc<dyn Backend>,
        config: EngineConfig,
        mailbox: Arc<Mailbox>,
    ) -> Result<Self, BackendError> {
        let limits = &config.limits;
        let spec = KvSpec {
            layers: model.layers(),
            blocks: limits.blocks,
            block_tokens: limits.block_tokens,
            entry: model.kv_entry(),
            precision: config.kv_precision,
        };
        let vocab = model.config().vocab_size;
        let kv = backend.alloc_kv(&spec)?;
        let tenant_weights = config.tenant_weights.clone();
        let scheduler = Scheduler::new(&SchedulerConfig { limits: limits.clone(), tenant_weights });
        mailbox.report(scheduler.load()); // whoever asks before the first step hears how many blocks there are
        Ok(Self {
            kv,
            scheduler,
            requests: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            batch: Batch::default(),
            logits: vec![0.0; limits.logit_rows_max * vocab],
            outcomes: Vec::new(),
            mask: TokenMask::new(vocab),
            vocab,
            config,
            model,
            backend,
            mailbox,
        })
    }

    /// The body of the engine's thread. However it ends, every request gets its last word.
    pub fn run(mut self) {
        let why = match catch_unwind(AssertUnwindSafe(|| self.run_steps())) {
            Ok(Ok(())) => EngineError::Stopped,
            Ok(Err(error)) => error,
            Err(panic) => EngineError::Panicked(panic_message(&*panic)),
        };
        if !matches!(why, EngineError::Stopped) {
            tracing::error!("{why}");
        }
        let mail = self.mailbox.end(why.clone());
        for request in self.requests.values() {
            request.fail(why.clone());
        }
        for submission in mail.submitted {
            submission.sender.fail(why.clone());
        }
    }

    fn run_steps(&mut self) -> Result<(), EngineError> {
        let (mut idle, mut settled) = (true, false);
        loop {
            let until = self.deadlines.first().map(|(deadline, _)| *deadline);
            let Some(mail) = self.mailbox.take(self.scheduler.load(), idle && settled, until) else { break };
            self.read(mail);
            self.expire();
            let started = Instant::now();
            idle = !self.step()?;
            if !settled {
                settled = self.settle(started.elapsed() * SETTLE_STEPS)?;
            }
        }
        Ok(())
    }

    /// Has weights settle for at least a turn. The slower steps still are, the more there is to gain.
    fn settle(&self, budget: Duration) -> Result<bool, EngineError> {
        let started = Instant::now();
        loop {
            let done = self.backend.settle(SETTLE_TURN).map_err(|error| EngineError::Weights(Arc::new(error)))?;
            if done || self.mailbox.has_news() || started.elapsed() >= budget {
                return Ok(done);
            }
        }
    }

    fn read(&mut self, mail: Mail) {
        for submission in mail.submitted {
            self.admit(submission);
        }
        for id in mail.aborted {
            self.scheduler.abort(id);
            self.forget(id);
        }
        for id in mail.resumed {
            // Word may have come late, from before the present pause: the stream itself knows.
            if self.requests.get(&id).is_some_and(|request| !request.sender.pause()) {
                self.scheduler.set_paused(id, false);
            }
        }
    }

    fn admit(&mut self, submission: Submission) {
        let id = submission.id;
        let prompt_tokens = submission.request.prompt.len();
        let prompt_logits = submission.request.prompt_logprobs.is_some();
        let request = Active::new(submission, &self.config);
        if request.wants_nothing() {
            request.finish(FinishReason::Length, 0);
            return;
        }
        let service = request.service();
        self.deadlines.extend(service.deadline.map(|deadline| (deadline, id)));
        self.scheduler.add(NewSequence {
            id,
            prompt_tokens,
            prompt_logits,
            priority: service.priority,
            tenant: service.tenant.clone(),
            namespace: request.namespace(self.config.prefix_sharing),
        });
        self.requests.insert(id, request);
    }

    /// Fails the requests whose time is over, running or not.
    fn expire(&mut self) {
        if self.deadlines.is_empty() {
            return;
        }
        let now = Instant::now();
        while let Some(&(_, id)) = self.deadlines.first().filter(|(deadline, _)| *deadline <= now) {
            self.scheduler.abort(id);
            let request = self.forget(id).expect("it has not ended");
            request.fail(EngineError::DeadlineExceeded);
        }
    }

    /// Takes a request out, which the scheduler does not know any more.
    fn forget(&mut self, id: RequestId) -> Option<Active> {
        let request = self.requests.remove(&id)?;
        if let Some(deadline) = request.service().deadline {
            self.deadlines.remove(&(deadline, id));
        }
        Some(request)
    }

    /// One step; false if there is nothing to do until mail comes. An error ends the engine.
    fn step(&mut self) -> Result<bool, EngineError> {
        let requests = &self.requests;
        let Some(plan) = self.scheduler.next_step(&|id| &requests[&id].tokens) else { return Ok(false) };
        self.mailbox.report(self.scheduler.load());
        self.fill_batch(&plan);
        match self.forward(&plan) {
            Ok(()) => {
                self.deliver(&plan);
                if let Err(error) = self.speculate(&plan) {
                    self.fail(&plan, error)?;
                }
            }
            Err(error) => self.fail(&plan, error)?,
        }
        Ok(true)
    }

    /// Writes the plan out as rows, with tokens and block tables.
    fn fill_batch(&mut self, plan: &StepPlan) {
        let batch = &mut self.batch;
        batch.tokens.clear();
        batch.logit_rows.clear();
        batch.sequences.resize_with(plan.slices.len(), SequenceSlice::default);
        for (slice, sequence) in plan.slices.iter().zip(&mut batch.sequences) {
            let start = batch.tokens.len();
            let end = start + slice.rows;
            let request = self.requests.get_mut(&slice.id).expect("the scheduler knows only live requests");
            request.on_planned(slice);
            batch.tokens.extend(request.row_tokens(slice));
            batch.logit_rows.extend(((end - slice.logit_rows)..end).map(|row| row as u32));
            sequence.rows = start..end;
            sequence.context = slice.context;
            sequence.adapter = request.adapter;
            sequence.blocks.clear();
            sequence.blocks.extend_from_slice(self.scheduler.blocks(slice.id));
        }
        debug_assert_eq!(batch.validate(self.config.limits.block_tokens), Ok(()));
    }

    /// Computes the batch and brings its logits to the host, or of far ones what draws need.
    fn forward(&mut self, plan: &StepPlan) -> Result<(), BackendError> {
        if !plan.copies.is_empty() {
            self.backend.kv_copy(&mut self.kv, &plan.copies)?;
        }
        let logits = self.model.forward(&self.batch, &mut self.kv)?; // [logit_rows, vocab]
        match self.batch.logit_rows.len() {
            0 => Ok(()),
            rows if self.backend.capabilities().host_memory => {
                self.backend.read(logits, &mut self.logits[..rows * self.vocab])
            }
            _ => draw::draw_far(
                &*self.backend,
                plan,
                &mut self.requests,
                FarLogits { far: logits, near: &mut self.logits },
            ),
        }
    }

    /// Hands each sequence its logits, and the scheduler what came of them.
    fn deliver(&mut self, plan: &StepPlan) {
        self.outcomes.clear();
        let mut rest = self.logits.as_mut_slice();
        for slice in &plan.slices {
            let (rows, after) = rest.split_at_mut(slice.logit_rows * self.vocab);
            rest = after;
            let request = self.requests.get_mut(&slice.id).expect("the scheduler knows only live requests");
            let outcome = request.deliver(slice, rows, &mut self.mask);
            if matches!(outcome, SliceOutcome::Advanced { .. }) && request.sender.pause() {
                self.scheduler.set_paused(slice.id, true);
            }
            self.outcomes.push(outcome);
        }
        let requests = &self.requests;
        self.scheduler.on_step_done(plan, &self.outcomes, &|id| &requests[&id].tokens);
        for (slice, at) in plan.slices.iter().zip(0..) {
            if !matches!(self.outcomes[at], SliceOutcome::Advanced { .. }) {
                self.forget(slice.id);
            }
        }
    }

    /// Guesses what comes after the tokens that are known now.
    fn speculate(&mut self, plan: &StepPlan) -> Result<(), BackendError> {
        let Some(speculation) = &self.config.speculation else { return Ok(()) };
        let parts = speculate::Parts {
            model: &mut *self.model,
            backend: &*self.backend,
            kv: &mut self.kv,
            scheduler: &mut self.scheduler,
            requests: &mut self.requests,
            batch: &self.batch,
            logits: &mut self.logits,
            mask: &mut self.mask,
        };
        speculate::speculate(speculation, plan, &self.outcomes, parts)
    }

    /// Fails the requests of a step. Others go on, unless the device is lost.
    fn fail(&mut self, plan: &StepPlan, error: BackendError) -> Result<(), EngineError> {
        tracing::error!("a step of {} rows failed: {error}", plan.rows());
        let why = match &error {
            BackendError::Device { .. } => return Err(EngineError::DeviceLost(Arc::new(error))),
            BackendError::Exchange { .. } => EngineError::Unreachable(Arc::new(error)),
            _ => EngineError::Step(Arc::new(error)),
        };
        for slice in &plan.slices {
            self.scheduler.abort(slice.id);
            if let Some(request) = self.forget(slice.id) {
                request.fail(why.clone());
            }
        }
        Ok(())
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (None, Some(text)) => text.clone(),
        (None, None) => "no message".to_owned(),
    }
}
