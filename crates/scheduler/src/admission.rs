//! Who gets in, and who has to make room.

use lingqu_kv::blocks_for;
use lingqu_types::{Priority, RequestId};

use crate::plan::{Budget, StepPlan};
use crate::sequence::Sequence;
use crate::{Scheduler, TokensOf};

/// What became of an attempt to admit a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    Admitted,
    /// Another sequence computes what it needs.
    Deferred,
    /// Nobody of lower rank may overtake it.
    NoRoom,
}

impl Scheduler {
    /// Lets a waiting sequence run, with its first slice, if there is room.
    pub(crate) fn admit(
        &mut self,
        id: RequestId,
        plan: &mut StepPlan,
        budget: &mut Budget,
        tokens: &TokensOf<'_>,
    ) -> Admission {
        let step = self.step;
        let sequence = self.waiting.get_mut(&id).expect("it waits");
        sequence.seen_at = step;
        if sequence.awaited.is_some_and(|awaited| self.still_awaits(awaited)) {
            return Admission::Deferred;
        }
        self.find_beginning(id, tokens);
        let awaited = self.computing(id, step - 1, tokens);
        let is_room = awaited.is_none() && self.make_room_for(id, plan, budget) && budget.has_row();
        let is_room = is_room && budget.logit_rows > 0;
        let sequence = self.waiting.get_mut(&id).expect("it waits");
        sequence.awaited = awaited;
        if !is_room {
            self.cache.release(&mut sequence.table);
            sequence.kept_blocks = 0;
            return if awaited.is_some() { Admission::Deferred } else { Admission::NoRoom };
        }
        self.start(id, plan, budget);
        Admission::Admitted
    }

    /// Moves a sequence, for which there is room, to the running ones.
    fn start(&mut self, id: RequestId, plan: &mut StepPlan, budget: &mut Budget) {
        let mut sequence = self.waiting.remove(&id).expect("it waits");
        self.tenants.dequeue(&sequence.tenant, id);
        let found = sequence.kept_blocks * self.limits.block_tokens;
        sequence.computed = found.min(sequence.tokens_to_find());
        if sequence.computed < found {
            // It goes on within its last shared block.
            let copy = self.cache.make_writable(&mut sequence.table, sequence.computed).expect("room was made");
            plan.copies.extend(copy);
            sequence.kept_blocks -= 1;
        }
        self.cache.grow(&mut sequence.table, sequence.tokens).expect("room was made");
        let slice = sequence.next_slice(id, budget).expect("a row and its logits are left");
        self.running.insert(id, sequence);
        self.push_slice(plan, slice);
    }

    /// Makes room for a sequence whose table holds what was found of its beginning.
    fn make_room_for(&mut self, id: RequestId, plan: &mut StepPlan, budget: &mut Budget) -> bool {
        let sequence = &self.waiting[&id];
        let (class, shared) = (sequence.class(), sequence.kept_blocks);
        let missing = blocks_for(sequence.tokens, self.limits.block_tokens) - shared;
        let is_copied = shared * self.limits.block_tokens > sequence.tokens_to_find();
        if self.make_room(class, missing + usize::from(is_copied), plan, budget) {
            return true;
        }
        if !is_copied {
            return false;
        }
        // There may be room for the last shared block or its copy, but not for both.
        let sequence = self.waiting.get_mut(&id).expect("it waits");
        self.cache.pop(&mut sequence.table);
        sequence.kept_blocks -= 1;
        self.make_room(class, missing + 1, plan, budget)
    }

    /// Makes room for one more running sequence of so many further blocks, at the cost of those that must give way to
    /// it if that is enough; else changes nothing. One block for each that runs already stays free, so that nobody is
    /// preempted again at once.
    fn make_room(&mut self, class: Priority, blocks: usize, plan: &mut StepPlan, budget: &mut Budget) -> bool {
        let sequences_max = self.limits.sequences_max;
        let fits = |running: usize, available: usize| running < sequences_max && blocks + running <= available;
        let gives_way = |s: &&Sequence| s.paused || (class == Priority::Interactive && s.class() == Priority::Batch);
        if fits(self.running.len(), self.cache.available()) {
            return true;
        }
        let going = self.running.values().filter(gives_way);
        let stay = self.running.len() - going.clone().count();
        let freed = self.cache.freed_by(going.map(|s| &s.table));
        if !fits(stay, self.cache.available() + freed) {
            return false;
        }
        while !fits(self.running.len(), self.cache.available()) {
            let victim = self.victim(gives_way).expect("there is room without them");
            self.preempt(victim, plan, budget);
        }
        true
    }

    /// Who goes first of some: a paused one, else one of the lowest class, of the tenant that has had most, the
    /// youngest.
    pub(crate) fn victim(&self, of: impl Fn(&&Sequence) -> bool) -> Option<RequestId> {
        let some = self.running.iter().filter(|(_, s)| of(s));
        some.max_by_key(|(id, s)| (s.paused, s.class(), self.tenants.served(&s.tenant), **id)).map(|(&id, _)| id)
    }

    /// Sends a sequence back to waiting. What it had in full blocks stays in the cache for a while; the rest is
    /// computed anew, to the same bits.
    pub(crate) fn preempt(&mut self, id: RequestId, plan: &mut StepPlan, budget: &mut Budget) {
        let mut sequence = self.running.remove(&id).expect("it runs");
        self.cache.release(&mut sequence.table);
        (sequence.computed, sequence.kept_blocks, sequence.drafts) = (0, 0, 0);
        if let Some(at) = plan.slices.iter().position(|slice| slice.id == id) {
            let slice = plan.slices.remove(at);
            budget.rows += slice.rows;
            budget.logit_rows += slice.logit_rows;
        }
        if !sequence.paused {
            self.tenants.enqueue(&sequence.tenant, sequence.class(), id);
        }
        self.waiting.insert(id, sequence);
        self.counts.preemptions += 1;
    }

    /// Lets some batch sequences go with the interactive ones that were left out for too long.
    pub(crate) fn shelter(&mut self) {
        let all = || self.running.iter().chain(&self.waiting);
        let room = self.sheltered_max().saturating_sub(all().filter(|(_, s)| s.sheltered).count());
        let overdue = |s: &Sequence| self.step - s.progressed_at > self.limits.batch_wait_steps_max as u64;
        let left_out = all().filter(|(_, s)| !s.paused && s.class() == Priority::Batch && overdue(s));
        let mut left_out: Vec<_> = left_out.map(|(&id, s)| (s.progressed_at, id)).collect();
        left_out.sort_unstable();
        for (_, id) in left_out.into_iter().take(room) {
            let waits = self.waiting.contains_key(&id);
            let sequence = self.waiting.get_mut(&id).or_else(|| self.running.get_mut(&id)).expect("found above");
            sequence.sheltered = true;
            if waits {
                self.tenants.dequeue(&sequence.tenant, id);
                self.tenants.enqueue(&sequence.tenant, Priority::Interactive, id);
            }
        }
    }

    /// Batch sequences that may go with the interactive ones at once.
    fn sheltered_max(&self) -> usize {
        self.limits.sequences_max.div_ceil(8)
    }
}
