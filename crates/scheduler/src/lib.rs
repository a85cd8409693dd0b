//! Pure scheduling: what to run next.
//!
//! It knows sequences by their lengths only: no token, no model, no clock, no thread. The same calls give the same
//! plans. Start with [`Scheduler::next_step`].
//!
//! The rules:
//! - A sequence is *waiting* (holds no block) or *running* (holds the blocks of all its known tokens). At most
//!   `sequences_max` run.
//! - First come, first served: the oldest waiting sequence is admitted before any other, once its blocks are free.
//! - A step holds first one row for each decoding sequence, then prompt chunks, oldest first, as rows allow.
//! - Only decoding takes further blocks. When they run out, a running sequence goes back to waiting and is recomputed
//!   later: a paused one if there is any, else the youngest. The oldest one always goes on, so all of them finish.
//! - A decoding sequence may have drafts of its next tokens checked in the same step, with what rows and blocks are
//!   left over after all else ([`Scheduler::set_drafts`]).
//! - A paused sequence (its reader is slow) is in no step. It keeps its blocks until somebody else needs them.

#![forbid(unsafe_code)]

mod plan;
mod sequence;

use std::collections::BTreeMap;

use lingqu_kv::{BlockPool, KvBug, blocks_for};
use lingqu_types::{BlockId, Limits, RequestId};

pub use plan::{SliceOutcome, SlicePlan, StepPlan};
pub use sequence::NewSequence;

use plan::Budget;
use sequence::Sequence;

/// What is running and what waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedulerLoad {
    /// Sequences that hold blocks, the paused ones among them.
    pub running: usize,
    /// Sequences that hold none, the preempted ones among them.
    pub waiting: usize,
    /// Sequences whose reader is slow, running or waiting.
    pub paused: usize,
    pub kv_blocks_used: usize,
    pub kv_blocks_total: usize,
    /// Sequences sent back to waiting since the start.
    pub preemptions: u64,
    /// Drafts that were checked since the start, those of a sequence's last step aside.
    pub drafted: u64,
    /// How many of them turned out right.
    pub accepted: u64,
}

/// Decides what each step computes, and owns the blocks.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    pool: BlockPool,
    /// By age: ids ascend in order of arrival.
    waiting: BTreeMap<RequestId, Sequence>,
    running: BTreeMap<RequestId, Sequence>,
    preemptions: u64,
    drafted: u64,
    accepted: u64,
}

impl Scheduler {
    /// `limits` must be valid ([`Limits::validate`]): one sequence alone always fits the cache.
    pub fn new(limits: &Limits) -> Self {
        assert_eq!(limits.validate(), Ok(()), "limits are checked before they come here");
        Self {
            limits: limits.clone(),
            pool: BlockPool::new(limits.blocks),
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            preemptions: 0,
            drafted: 0,
            accepted: 0,
        }
    }

    /// Puts a sequence last in the queue. Its id must be new and above all earlier ones; the queue's bound is kept by
    /// the caller, who can still refuse.
    pub fn add(&mut self, new: NewSequence) {
        assert!(new.prompt_tokens > 0 && new.prompt_tokens <= self.limits.context_tokens_max, "prompts are checked");
        assert!(self.waiting.last_key_value().is_none_or(|(&last, _)| last < new.id), "ids ascend");
        assert!(self.running.last_key_value().is_none_or(|(&last, _)| last < new.id), "ids ascend");
        self.waiting.insert(new.id, Sequence::new(&new, self.limits.block_tokens));
    }

    /// Forgets a sequence in any state and frees its blocks. False if it is unknown (it has finished).
    pub fn abort(&mut self, id: RequestId) -> bool {
        match self.waiting.remove(&id).or_else(|| self.running.remove(&id)) {
            Some(mut sequence) => {
                sequence.table.release(&mut self.pool);
                true
            }
            None => false,
        }
    }

    /// Takes a sequence out of the steps, or lets it back in. Unknown ids (finished ones) are ignored.
    pub fn set_paused(&mut self, id: RequestId, paused: bool) {
        if let Some(sequence) = self.waiting.get_mut(&id).or_else(|| self.running.get_mut(&id)) {
            sequence.paused = paused;
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
        let fits = missing == 0 || (missing + spare <= self.pool.free() && positions <= self.limits.context_tokens_max);
        fits && sequence.table.grow(&mut self.pool, positions).is_ok()
    }

    /// The next step, or `None` when there is nothing to compute: every sequence there is, if any, is paused.
    ///
    /// The plan must be answered by [`Scheduler::on_step_done`], or each of its sequences aborted.
    pub fn next_step(&mut self) -> Option<StepPlan> {
        let mut plan = StepPlan::default();
        let mut budget = Budget { rows: self.limits.batch_rows_max, logit_rows: self.limits.logit_rows_max };
        self.plan_decodes(&mut plan, &mut budget);
        self.plan_prefills(&mut plan, &mut budget);
        self.admit(&mut plan, &mut budget);
        self.plan_drafts(&mut plan, &mut budget);
        (!plan.slices.is_empty()).then_some(plan)
    }

    /// Records what became of each slice of the plan, in the plan's order.
    pub fn on_step_done(&mut self, plan: &StepPlan, outcomes: &[SliceOutcome]) {
        assert_eq!(plan.slices.len(), outcomes.len(), "one outcome for each slice");
        for (slice, outcome) in plan.slices.iter().zip(outcomes) {
            match outcome {
                SliceOutcome::Advanced { tokens } => {
                    self.drafted += slice.drafts as u64;
                    self.accepted += tokens.saturating_sub(1) as u64;
                    self.running.get_mut(&slice.id).expect("it was planned").advance(slice, *tokens);
                }
                SliceOutcome::Finished => assert!(self.abort(slice.id), "it was planned"),
            }
        }
    }

    /// The block table of a running sequence; empty for any other. A planned slice finds room there for all its rows.
    pub fn blocks(&self, id: RequestId) -> &[BlockId] {
        self.running.get(&id).map_or(&[], |sequence| sequence.table.blocks())
    }

    pub fn load(&self) -> SchedulerLoad {
        let all = self.running.values().chain(self.waiting.values());
        SchedulerLoad {
            running: self.running.len(),
            waiting: self.waiting.len(),
            paused: all.filter(|s| s.paused).count(),
            kv_blocks_used: self.pool.used(),
            kv_blocks_total: self.pool.total(),
            preemptions: self.preemptions,
            drafted: self.drafted,
            accepted: self.accepted,
        }
    }

    /// Checks that every block is accounted for and every running sequence has room for what is in the cache.
    pub fn check(&self) -> Result<(), KvBug> {
        assert!(self.running.len() <= self.limits.sequences_max, "more sequences run than may");
        for sequence in self.running.values() {
            assert!(sequence.table.capacity_tokens() >= sequence.computed, "cached tokens without a block");
        }
        assert!(self.waiting.values().all(|s| s.computed == 0 && s.table.blocks().is_empty()), "blocks while waiting");
        self.pool.check(self.running.values().map(|s| &s.table))
    }

    /// One row for each decoding sequence; makes room for all of them first.
    fn plan_decodes(&mut self, plan: &mut StepPlan, budget: &mut Budget) {
        while self.running.values().map(Sequence::decode_blocks_missing).sum::<usize>() > self.pool.free() {
            assert!(self.preempt_paused() || self.preempt_youngest(), "one sequence alone does not fit the cache");
        }
        for (&id, sequence) in self.running.iter_mut().filter(|(_, s)| s.decodes()) {
            sequence.table.grow(&mut self.pool, sequence.tokens).expect("there is room, it was made above");
            plan.slices.extend(sequence.next_slice(id, budget));
        }
    }

    /// Prompt chunks of running sequences, oldest first.
    fn plan_prefills(&mut self, plan: &mut StepPlan, budget: &mut Budget) {
        for (&id, sequence) in self.running.iter().filter(|(_, s)| s.prefills()) {
            plan.slices.extend(sequence.next_slice(id, budget));
        }
    }

    /// Admits from the queue, oldest first, while rows, sequences and blocks allow.
    fn admit(&mut self, plan: &mut StepPlan, budget: &mut Budget) {
        loop {
            let Some((&id, sequence)) = self.waiting.iter().find(|(_, s)| !s.paused) else { return };
            let wanted = blocks_for(sequence.tokens, self.limits.block_tokens);
            let Some(slice) = sequence.next_slice(id, budget) else { return };
            if !self.make_room(wanted) {
                return;
            }
            let mut sequence = self.waiting.remove(&id).expect("found above");
            sequence.table.grow(&mut self.pool, sequence.tokens).expect("room was made");
            plan.slices.push(slice);
            self.running.insert(id, sequence);
        }
    }

    /// Adds drafts to the decodes of the plan. As at admission, one block for each running sequence stays free.
    fn plan_drafts(&mut self, plan: &mut StepPlan, budget: &mut Budget) {
        let spare = self.running.len();
        for (&id, sequence) in &mut self.running {
            let wanted = std::mem::take(&mut sequence.drafts);
            let wanted = wanted.min(budget.rows).min(budget.logit_rows);
            let drafts = wanted.min(self.limits.context_tokens_max - sequence.tokens);
            if drafts == 0 || !sequence.decodes() {
                continue;
            }
            let fits = sequence.table.missing_for(sequence.tokens + drafts) + spare <= self.pool.free();
            let room = sequence.table.capacity_tokens() - sequence.tokens;
            let drafts = if fits { drafts } else { drafts.min(room) };
            let Some(slice) = plan.slices.iter_mut().find(|slice| slice.id == id).filter(|_| drafts > 0) else {
                continue;
            };
            sequence.table.grow(&mut self.pool, sequence.tokens + drafts).expect("there is room");
            slice.rows += drafts;
            slice.logit_rows += drafts;
            slice.drafts = drafts;
            budget.rows -= drafts;
            budget.logit_rows -= drafts;
        }
    }

    /// Makes room for one more running sequence of so many blocks, at the cost of paused ones if that is enough; else
    /// changes nothing. One block for each that runs already stays free, so that nobody is preempted again at once.
    fn make_room(&mut self, blocks: usize) -> bool {
        let (paused, active): (Vec<_>, Vec<_>) = self.running.values().partition(|s| s.paused);
        let held: usize = paused.iter().map(|s| s.table.blocks().len()).sum();
        let sequences_max = self.limits.sequences_max;
        let fits = |running: usize, free: usize| running < sequences_max && blocks + running <= free;
        if !fits(active.len(), self.pool.free() + held) {
            return false;
        }
        while !fits(self.running.len(), self.pool.free()) {
            assert!(self.preempt_paused(), "there is room without the paused sequences");
        }
        true
    }

    fn preempt_paused(&mut self) -> bool {
        let youngest = self.running.iter().rev().find(|(_, s)| s.paused).map(|(&id, _)| id);
        youngest.is_some_and(|id| self.preempt(id))
    }

    fn preempt_youngest(&mut self) -> bool {
        let youngest = (self.running.len() > 1).then(|| self.running.last_key_value().map(|(&id, _)| id)).flatten();
        youngest.is_some_and(|id| self.preempt(id))
    }

    /// Sends a sequence back to waiting. It comes before every younger one, and is computed anew, to the same bits.
    fn preempt(&mut self, id: RequestId) -> bool {
        let mut sequence = self.running.remove(&id).expect("it runs");
        sequence.table.release(&mut self.pool);
        sequence.computed = 0;
        self.waiting.insert(id, sequence);
        self.preemptions += 1;
        true
    }
}
