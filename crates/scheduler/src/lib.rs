//! Pure scheduling: what to run next.
//!
//! It knows sequences by their lengths, and reads their tokens only to find equal beginnings: no model, no clock, no
//! thread. The same calls give the same plans. Start with [`Scheduler::next_step`].
//!
//! The rules:
//! - A sequence is *waiting* (holds no block) or *running* (holds the blocks of all its known tokens). At most
//!   `sequences_max` run.
//! - A step holds first one row for each decoding sequence, then prompt chunks of those that run and those that can be
//!   admitted, by rank: interactive before batch, then the tenant that has had least by its weight, then the oldest
//!   ([`fair`]). Who waits is not overtaken by anyone of lower rank for want of blocks.
//! - Full blocks of computed tokens are shared with whoever begins with the same tokens, in the same namespace, and
//!   stay in the cache after their sequence until somebody needs them. While a running sequence computes a block that
//!   another one needs too, the other one waits for it ([`prefix`]).
//! - When blocks run out a running sequence goes back to waiting and is recomputed later: a paused one, else the one of
//!   the last rank. An interactive sequence that waits may send paused and batch sequences back too ([`admission`]).
//!   What was drawn is never lost, and steps that draw nothing end: so all of them finish.
//! - A batch sequence that got no further for `batch_wait_steps_max` steps goes with the interactive ones from then on;
//!   so may an eighth of all that can run.
//! - A decoding sequence may have drafts of its next tokens checked in the same step, with what rows and blocks are
//!   left over after all else ([`Scheduler::set_drafts`]).
//! - A paused sequence (its reader is slow) is in no step. It keeps its blocks until somebody else needs them.

#![forbid(unsafe_code)]

mod admission;
mod config;
mod fair;
mod plan;
mod prefix;
mod sequence;
mod steps;

use std::collections::BTreeMap;

use lingqu_kv::{BlockCache, KvBug};
use lingqu_types::{BlockId, Limits, Priority, RequestId, TokenId};

pub use config::{SchedulerConfig, SchedulerLoad};
pub use plan::{SliceOutcome, SlicePlan, StepPlan};
pub use sequence::NewSequence;

use fair::{Cost, Tenants};
use plan::Budget;
use sequence::Sequence;

/// The known tokens of a live sequence: its prompt and what was drawn since.
pub type TokensOf<'a> = dyn Fn(RequestId) -> &'a [TokenId] + 'a;

/// Steps between two looks for batch sequences that were left out.
const SHELTER_STEPS: u64 = 16;

/// Decides what each step computes, and owns the blocks.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    cache: BlockCache,
    tenants: Tenants,
    waiting: BTreeMap<RequestId, Sequence>,
    running: BTreeMap<RequestId, Sequence>,
    last_id: Option<RequestId>,
    /// Steps planned so far.
    step: u64,
    paused: usize,
    counts: Counts,
}

/// Since the start.
#[derive(Debug, Default)]
struct Counts {
    preemptions: u64,
    prompt_tokens: u64,
    cached_tokens: u64,
    computed_tokens: u64,
    drafted: u64,
    accepted: u64,
}

impl Scheduler {
    /// The limits must be valid ([`Limits::validate`]): one sequence alone always fits the cache.
    pub fn new(config: &SchedulerConfig) -> Self {
        let limits = config.limits.clone();
        assert_eq!(limits.validate(), Ok(()), "limits are checked before they come here");
        Self {
            cache: BlockCache::new(limits.blocks, limits.block_tokens),
            tenants: Tenants::new(&config.tenant_weights, limits.tenants_remembered_max),
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            last_id: None,
            step: 0,
            paused: 0,
            counts: Counts::default(),
            limits,
        }
    }

    /// Puts a sequence into the queue. Its id must be new and above all earlier ones; the queue's bounds are kept by
    /// the caller, who can still refuse.
    pub fn add(&mut self, new: NewSequence) {
        assert!(new.prompt_tokens > 0 && new.prompt_tokens <= self.limits.context_tokens_max, "prompts are checked");
        assert!(self.last_id.replace(new.id) < Some(new.id), "ids ascend");
        self.counts.prompt_tokens += new.prompt_tokens as u64;
        self.tenants.arrive(&new.tenant);
        self.tenants.enqueue(&new.tenant, new.priority, new.id);
        self.waiting.insert(new.id, Sequence::new(new, self.limits.block_tokens, self.step));
    }

    /// Forgets a sequence in any state and gives its blocks back. False if it is unknown (it has finished).
    pub fn abort(&mut self, id: RequestId) -> bool {
        let Some(mut sequence) = self.waiting.remove(&id).or_else(|| self.running.remove(&id)) else { return false };
        self.cache.release(&mut sequence.table);
        self.tenants.dequeue(&sequence.tenant, id);
        self.tenants.leave(&sequence.tenant);
        self.paused -= usize::from(sequence.paused);
        true
    }

    /// Takes a sequence out of the steps, or lets it back in. Unknown ids (finished ones) are ignored.
    pub fn set_paused(&mut self, id: RequestId, paused: bool) {
        let waits = self.waiting.contains_key(&id);
        let Some(sequence) = self.waiting.get_mut(&id).or_else(|| self.running.get_mut(&id)) else { return };
        if sequence.paused == paused {
            return;
        }
        sequence.paused = paused;
        // Its own reader left it out.
        sequence.sheltered = false;
        sequence.progressed_at = self.step;
        match paused {
            true => {
                self.paused += 1;
                self.tenants.dequeue(&sequence.tenant, id);
            }
            false => {
                self.paused -= 1;
                if waits {
                    self.tenants.enqueue(&sequence.tenant, sequence.class(), id);
                }
            }
        }
    }

    /// Says that `count` drafts of the next tokens are at hand, for the next step alone. The plan says how many of them
    /// it takes. Sequences that do not decode then (waiting, paused or unknown ones) take none.
    pub fn set_drafts(&mut self, id: RequestId, count: usize) {
        if let Some(sequence) = self.running.get_mut(&id) {
            sequence.drafts = count;
        }
    }

    /// Gives a running sequence the blocks of its first `positions` positions ahead of its next step, while one for
    /// each running sequence stays free. False if it lacks some then.
    pub fn reserve(&mut self, id: RequestId, positions: usize) -> bool {
        let spare = self.running.len();
        let Some(sequence) = self.running.get_mut(&id) else { return false };
        let missing = sequence.table.missing_for(positions);
        let is_room = missing + spare <= self.cache.available() && positions <= self.limits.context_tokens_max;
        (missing == 0 || is_room) && self.cache.grow(&mut sequence.table, positions).is_ok()
    }

    /// The next step, or `None` when there is nothing to compute: every sequence there is, if any, is paused.
    ///
    /// The plan must be answered by [`Scheduler::on_step_done`], or each of its sequences aborted.
    pub fn next_step(&mut self, tokens: &TokensOf<'_>) -> Option<StepPlan> {
        self.step += 1;
        if self.step.is_multiple_of(SHELTER_STEPS) {
            self.shelter();
        }
        let Limits { batch_rows_max, logit_rows_max, prompt_rows_max_with_decodes, .. } = self.limits;
        let mut plan = StepPlan::default();
        let mut budget = Budget { rows: batch_rows_max, prompt_rows: batch_rows_max, logit_rows: logit_rows_max };
        self.plan_decodes(&mut plan, &mut budget);
        let is_bounded = prompt_rows_max_with_decodes > 0 && !plan.slices.is_empty();
        budget.prompt_rows = if is_bounded { prompt_rows_max_with_decodes } else { usize::MAX };
        self.plan_prefills(&mut plan, &mut budget, tokens);
        self.plan_drafts(&mut plan, &mut budget);
        (!plan.slices.is_empty()).then_some(plan)
    }

    /// Records what became of each slice of the plan, in the plan's order. `tokens` include those now known.
    pub fn on_step_done(&mut self, plan: &StepPlan, outcomes: &[SliceOutcome], tokens: &TokensOf<'_>) {
        assert_eq!(plan.slices.len(), outcomes.len(), "one outcome for each slice");
        for (slice, outcome) in plan.slices.iter().zip(outcomes) {
            let sequence = self.running.get_mut(&slice.id).expect("it was planned");
            match *outcome {
                SliceOutcome::Advanced { tokens } => {
                    self.counts.drafted += slice.drafts as u64;
                    sequence.advance(slice, tokens);
                    self.counts.accepted += tokens.saturating_sub(1) as u64;
                }
                SliceOutcome::Finished => sequence.computed = slice.end(),
                SliceOutcome::Failed => {
                    self.abort(slice.id);
                    continue;
                }
            }
            let end = sequence.computed;
            self.charge(slice.id, slice.context, end, Cost::Output);
            self.keep_computed(slice.id, tokens);
            if *outcome == SliceOutcome::Finished {
                self.abort(slice.id);
            }
        }
    }

    /// The block table of a running sequence; empty for any other. A planned slice finds room there for all its rows.
    pub fn blocks(&self, id: RequestId) -> &[BlockId] {
        self.running.get(&id).map_or(&[], |sequence| sequence.table.blocks())
    }

    pub fn load(&self) -> SchedulerLoad {
        let counts = &self.counts;
        SchedulerLoad {
            running: self.running.len(),
            waiting: self.waiting.len(),
            waiting_interactive: self.tenants.queued(Priority::Interactive),
            waiting_batch: self.tenants.queued(Priority::Batch),
            paused: self.paused,
            tenants: self.tenants.known().0,
            kv_blocks_used: self.cache.used(),
            kv_blocks_kept: self.cache.kept(),
            kv_blocks_total: self.cache.total(),
            preemptions: counts.preemptions,
            kv_evictions: self.cache.evictions(),
            prompt_tokens: counts.prompt_tokens,
            cached_tokens: counts.cached_tokens,
            computed_tokens: counts.computed_tokens,
            drafted: counts.drafted,
            accepted: counts.accepted,
            steps: self.step,
        }
    }

    /// Checks that every block is accounted for, that every running sequence has room for what is in the cache, and
    /// every bound.
    pub fn check(&self) -> Result<(), KvBug> {
        assert!(self.running.len() <= self.limits.sequences_max, "more sequences run than may");
        for sequence in self.running.values() {
            assert!(sequence.table.capacity_tokens() >= sequence.computed, "cached tokens without a block");
            assert!(sequence.kept_blocks * self.limits.block_tokens <= sequence.computed, "shared and not computed");
        }
        assert!(self.waiting.values().all(|s| s.computed == 0 && s.table.blocks().is_empty()), "blocks while waiting");
        let queued = self.tenants.queued(Priority::Interactive) + self.tenants.queued(Priority::Batch);
        assert_eq!(queued, self.waiting.values().filter(|s| !s.paused).count(), "queues and waiting sequences differ");
        let all = || self.running.values().chain(self.waiting.values());
        assert_eq!(self.paused, all().filter(|s| s.paused).count(), "paused sequences are counted");
        let (here, remembered) = self.tenants.known();
        assert!(here <= all().count() && remembered <= self.limits.tenants_remembered_max, "too many tenants");
        self.cache.check(self.running.values().map(|s| &s.table))
    }
}
