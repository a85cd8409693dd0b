//! What goes into a step, and in which order.

use lingqu_types::{Priority, RequestId};

use crate::admission::Admission;
use crate::fair::Cost;
use crate::plan::{Budget, SlicePlan, StepPlan};
use crate::sequence::Sequence;
use crate::{Scheduler, TokensOf};

/// Sequences that may be left in the queue in one step because others compute what they need. Bounds the work of a
/// step; whoever comes after them in the queue waits for the next one.
const DEFERRED_MAX: usize = 64;

/// In which order sequences get a step's rows: the least goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    pub class: Priority,
    pub served: u64,
    pub id: RequestId,
}

impl Scheduler {
    /// One row for each decoding sequence; makes room for all of them first.
    pub(crate) fn plan_decodes(&mut self, plan: &mut StepPlan, budget: &mut Budget) {
        while self.running.values().map(Sequence::decode_blocks_missing).sum::<usize>() > self.cache.available() {
            assert!(self.running.len() > 1, "one sequence alone does not fit the cache");
            let victim = self.victim(|_| true).expect("somebody runs");
            self.preempt(victim, plan, budget);
        }
        for (&id, sequence) in self.running.iter_mut().filter(|(_, s)| s.decodes()) {
            self.cache.grow(&mut sequence.table, sequence.tokens).expect("there is room, it was made above");
            sequence.planned_at = self.step;
            plan.slices.extend(sequence.next_slice(id, budget));
        }
    }

    /// Prompt chunks of those that run and those that wait, by rank, while rows and blocks allow.
    pub(crate) fn plan_prefills(&mut self, plan: &mut StepPlan, budget: &mut Budget, tokens: &TokensOf<'_>) {
        let mut deferred = 0;
        let mut admits = true;
        loop {
            let running = if budget.has_row() { self.first_prefill() } else { None };
            // Without a row left, only those are looked at that may take others' rows.
            let waiting = if admits { self.first_waiting() } else { None };
            let waiting = waiting.filter(|rank| budget.has_row() || rank.class == Priority::Interactive);
            match (running, waiting) {
                (None, None) => return,
                (Some(rank), None) => self.go_on(rank.id, plan, budget, tokens),
                (Some(rank), Some(other)) if rank < other => self.go_on(rank.id, plan, budget, tokens),
                (_, Some(rank)) => match self.admit(rank.id, plan, budget, tokens) {
                    Admission::Admitted => {}
                    Admission::NoRoom => admits = false,
                    Admission::Deferred => {
                        deferred += 1;
                        admits = deferred < DEFERRED_MAX;
                    }
                },
            }
        }
    }

    /// Adds drafts to the decodes of the plan. As at admission, one block for each running sequence stays free.
    pub(crate) fn plan_drafts(&mut self, plan: &mut StepPlan, budget: &mut Budget) {
        let spare = self.running.len();
        for slice in &mut plan.slices {
            let sequence = self.running.get_mut(&slice.id).expect("it is planned");
            let wanted = sequence.drafts.min(budget.rows).min(budget.logit_rows);
            let wanted = wanted.min(self.limits.context_tokens_max - sequence.tokens);
            if wanted == 0 || !sequence.decodes() {
                continue;
            }
            let fits = sequence.table.missing_for(sequence.tokens + wanted) + spare <= self.cache.available();
            let room = sequence.table.capacity_tokens() - sequence.tokens;
            let drafts = if fits { wanted } else { wanted.min(room) };
            self.cache.grow(&mut sequence.table, sequence.tokens + drafts).expect("there is room");
            slice.rows += drafts;
            slice.logit_rows += drafts;
            slice.drafts = drafts;
            budget.rows -= drafts;
            budget.logit_rows -= drafts;
        }
        self.running.values_mut().for_each(|sequence| sequence.drafts = 0);
    }

    /// Puts a prompt chunk into the plan, at the cost of its tenant.
    pub(crate) fn push_slice(&mut self, plan: &mut StepPlan, slice: SlicePlan) {
        let sequence = self.running.get_mut(&slice.id).expect("it runs");
        sequence.planned_at = self.step;
        plan.slices.push(slice);
        self.charge(slice.id, slice.context, slice.end(), Cost::Prompt);
    }

    /// Charges a tenant for a sequence that was found in the cache up to `found` and is computed up to `end`.
    pub(crate) fn charge(&mut self, id: RequestId, found: usize, end: usize, cost: Cost) {
        let sequence = self.running.get_mut(&id).expect("it runs");
        let cached = found.saturating_sub(sequence.charged);
        let computed = end.saturating_sub(found.max(sequence.charged));
        if cached + computed == 0 {
            return; // It was there before.
        }
        sequence.charged = end;
        sequence.progressed_at = self.step;
        self.counts.cached_tokens += cached as u64;
        self.counts.computed_tokens += computed as u64;
        self.tenants.charge(&sequence.tenant, cached, Cost::Cached);
        self.tenants.charge(&sequence.tenant, computed, cost);
    }

    /// The next chunk of a running sequence, unless another one computes the same in this step.
    fn go_on(&mut self, id: RequestId, plan: &mut StepPlan, budget: &mut Budget, tokens: &TokensOf<'_>) {
        self.running.get_mut(&id).expect("it runs").seen_at = self.step;
        self.find_more(id, tokens);
        if self.is_at_block(id) && self.computing(id, self.step, tokens).is_some() {
            return;
        }
        let slice = self.running[&id].next_slice(id, budget);
        if let Some(slice) = slice {
            self.push_slice(plan, slice);
        }
    }

    /// Whether a running sequence is about to begin a block.
    fn is_at_block(&self, id: RequestId) -> bool {
        self.running[&id].computed.is_multiple_of(self.limits.block_tokens)
    }

    /// The first by rank of those that prefill, and were not looked at in this step.
    fn first_prefill(&self) -> Option<Rank> {
        let some =
            self.running.iter().filter(|(_, s)| s.prefills() && s.seen_at != self.step && s.planned_at != self.step);
        some.map(|(&id, s)| Rank { class: s.class(), served: self.tenants.served(&s.tenant), id }).min()
    }

    /// The first by rank of those that wait, and were not looked at in this step.
    fn first_waiting(&self) -> Option<Rank> {
        let first = |class| {
            let queues = self.tenants.queues(class);
            let ranks = queues.filter_map(|(served, queue)| {
                let id = queue.iter().copied().find(|id| self.waiting[id].seen_at != self.step)?;
                Some(Rank { class, served, id })
            });
            ranks.min()
        };
        first(Priority::Interactive).or_else(|| first(Priority::Batch))
    }
}
