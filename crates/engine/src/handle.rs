//! The engine as the rest of the program sees it: start, submit, drain.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use lingqu_backend::Backend;
use lingqu_model::Model;
use lingqu_sampler::Constraint;
use lingqu_types::sampling::InvalidParam;
use lingqu_types::{AdapterId, GenerateRequest, Limits};

use crate::mailbox::Mailbox;
use crate::request::Submission;
use crate::step::StepLoop;
use crate::stream::{StreamStart, TokenStream, channel};
use crate::{EngineConfig, EngineError, SubmitError};

/// How long a step that is under way may take to end once the engine is told to stop.
const STEP_GRACE: Duration = Duration::from_secs(10);

pub use lingqu_scheduler::SchedulerLoad as EngineLoad;

/// A running engine. Dropping it stops it; requests that are not done then fail with [`EngineError::Stopped`].
pub struct Engine {
    handle: EngineHandle,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Submits requests to an engine. Cheap to clone; outlives the engine harmlessly.
#[derive(Clone)]
pub struct EngineHandle {
    mailbox: Arc<Mailbox>,
    facts: Arc<Facts>,
}

/// What never changes.
struct Facts {
    limits: Limits,
    vocab: usize,
    /// Tokens that one step may add to a stream beyond the first.
    drafts_max: usize,
    /// Names, in the order of their ids.
    adapters: Vec<Arc<str>>,
    /// Keys of the seeds that the engine picks itself.
    seeds: RandomState,
}

/// How a drain went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainReport {
    /// Requests that had not ended in time. Each was told so.
    pub cut_off: usize,
    /// The engine's thread has ended. False if a step hangs.
    pub stopped: bool,
}

impl Engine {
    /// Allocates the KV cache and starts the step loop.
    ///
    /// # Errors
    /// Limits that cannot work, a cache that does not fit, a thread that does not start.
    pub fn start(model: Box<dyn Model>, backend: Arc<dyn Backend>, config: EngineConfig) -> Result<Self, EngineError> {
        config.limits.validate().map_err(EngineError::Limits)?;
        if config.speculation.is_some() && !model.predicts() {
            return Err(EngineError::Start(
                "speculation needs the model's prediction layer, which is not loaded".into(),
            ));
        }
        let drafts_max = config.speculation.map_or(0, |speculation| speculation.drafts);
        let (limits, vocab) = (config.limits.clone(), model.config().vocab_size);
        let adapters = model.adapters().to_vec();
        let facts = Facts { limits, vocab, drafts_max, adapters, seeds: RandomState::new() };
        let mailbox = Arc::new(Mailbox::new(&config.limits));
        let steps = StepLoop::new(model, backend, config, mailbox.clone());
        let steps = steps.map_err(|error| EngineError::Start(error.to_string()))?;
        let thread = std::thread::Builder::new().name("lingqu-engine".into()).spawn(|| steps.run());
        let thread = thread.map_err(|error| EngineError::Start(error.to_string()))?;
        let handle = EngineHandle { mailbox, facts: Arc::new(facts) };
        Ok(Self { handle, thread: Mutex::new(Some(thread)) })
    }

    pub fn handle(&self) -> EngineHandle {
        self.handle.clone()
    }

    /// Takes no new request, lets those that wait and run end, for at most `timeout`, then stops the engine.
    pub fn drain(&self, timeout: Duration) -> DrainReport {
        let cut_off = self.handle.mailbox.drain(timeout);
        let stopped = self.handle.mailbox.stop(STEP_GRACE);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread.filter(|_| stopped) {
            thread.join().expect("the loop catches its panics");
        }
        DrainReport { cut_off, stopped }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.drain(Duration::ZERO);
    }
}

impl EngineHandle {
    /// Queues a request. Never waits.
    pub fn submit(&self, request: GenerateRequest) -> Result<TokenStream, SubmitError> {
        self.submit_constrained(request, None)
    }

    /// [`EngineHandle::submit`] with a grammar that every token must follow.
    pub fn submit_constrained(
        &self,
        request: GenerateRequest,
        constraint: Option<Box<dyn Constraint>>,
    ) -> Result<TokenStream, SubmitError> {
        let outputs_max = self.check(&request)?;
        let adapter = self.adapter_id(request.adapter.as_deref())?;
        let unread_max = self.facts.limits.unread_tokens_max;
        let tenant = request.service.tenant.clone();
        self.mailbox.submit(&tenant, |id, place| {
            // 53 bits: exact in JSON as in any other number format a client may use.
            let seed = request.sampling.seed.unwrap_or_else(|| self.facts.seeds.hash_one(id) >> 11);
            let prompt_tokens = request.prompt.len() as u32;
            let start = StreamStart { id, prompt_tokens, seed, drafts_max: self.facts.drafts_max };
            let (sender, stream) = channel(start, unread_max, self.mailbox.clone());
            (Submission { id, request, constraint, adapter, outputs_max, seed, sender, place }, stream)
        })
    }

    /// What runs and what waits, the queue counted in.
    pub fn load(&self) -> EngineLoad {
        self.mailbox.load().0
    }

    /// Why the engine has ended, if it has.
    pub fn ended(&self) -> Option<EngineError> {
        self.mailbox.load().1
    }

    pub fn limits(&self) -> &Limits {
        &self.facts.limits
    }

    /// Names of the LoRA adapters that requests may ask for, in the order in which they were loaded.
    pub fn adapters(&self) -> &[Arc<str>] {
        &self.facts.adapters
    }

    fn adapter_id(&self, name: Option<&str>) -> Result<Option<AdapterId>, InvalidParam> {
        let Some(name) = name else { return Ok(None) };
        match self.facts.adapters.iter().position(|known| **known == *name) {
            Some(i) => Ok(Some(AdapterId(i as u32))),
            None => {
                let shown: String = name.chars().take(80).flat_map(char::escape_debug).collect();
                Err(InvalidParam { field: "adapter", problem: format!("'{shown}' is not loaded") })
            }
        }
    }

    /// Checks the request against model and limits; returns the output tokens it may have.
    fn check(&self, request: &GenerateRequest) -> Result<usize, SubmitError> {
        let Limits { context_tokens_max, top_logprobs_max, .. } = self.facts.limits;
        request.validate(self.facts.vocab)?;
        for (field, asked) in [("logprobs", request.logprobs), ("prompt_logprobs", request.prompt_logprobs)] {
            if let Some(asked) = asked.filter(|&asked| asked > top_logprobs_max) {
                let problem = format!("{asked} is above {top_logprobs_max}");
                return Err(InvalidParam { field, problem }.into());
            }
        }
        let prompt_tokens = request.prompt.len();
        let wanted = request.stop.max_tokens.map_or(usize::MAX, |max| max as usize);
        let outputs_max = wanted.min(context_tokens_max.saturating_sub(prompt_tokens));
        if prompt_tokens > context_tokens_max || (outputs_max == 0 && wanted > 0) {
            return Err(SubmitError::TooLong { prompt_tokens, context_tokens_max });
        }
        Ok(outputs_max)
    }
}
