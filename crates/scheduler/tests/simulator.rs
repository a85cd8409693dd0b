//! Random traces of arrivals, steps, slow readers and aborts, with every promise checked at every step.

use std::collections::{BTreeMap, BTreeSet};

use lingqu_scheduler::{NewSequence, Scheduler, SliceOutcome, SlicePlan, StepPlan};
use lingqu_testkit::rng::{Rng, mix};
use lingqu_types::{Limits, RequestId};

/// Seeds of one run of the test; raise it for a longer one.
const TRACES: u64 = 10_000;

/// One sequence as its client sees it.
struct Client {
    prompt: usize,
    prompt_logits: bool,
    /// Tokens it wants before it ends; 0 ends with its prompt.
    outputs: usize,
    drawn: usize,
    /// Prompt rows whose logits have come.
    scored: usize,
    computed: usize,
    paused: bool,
    /// Drafts it has offered for the next step.
    drafts: usize,
    /// It has been in a plan.
    started: bool,
}

#[derive(Default)]
struct Coverage {
    steps: usize,
    mixed: usize,
    chunked: usize,
    preemptions: u64,
    aborts: usize,
    pauses: usize,
    /// Steps that had work but left out a sequence which was ready, for want of blocks or rows.
    crowded: usize,
    drafts: usize,
    right_drafts: usize,
}

struct World {
    limits: Limits,
    scheduler: Scheduler,
    /// Live ones.
    clients: BTreeMap<RequestId, Client>,
    /// Who wrote each position of the cache, and which position of its own that was.
    cells: Vec<Option<(RequestId, usize)>>,
    next_id: u64,
    /// Of all plans, to compare two runs.
    digest: u64,
}

impl World {
    fn new(rng: &mut Rng) -> Self {
        let context_tokens_max = rng.between(2, 40);
        let sequences_max = rng.between(1, 6);
        let block_tokens = rng.between(1, 5);
        let limits = Limits {
            context_tokens_max,
            sequences_max,
            block_tokens,
            batch_rows_max: sequences_max + rng.below(12),
            logit_rows_max: sequences_max + rng.below(6),
            // From barely one sequence to plenty.
            blocks: context_tokens_max.div_ceil(block_tokens) + rng.below(30),
            ..Limits::for_context(context_tokens_max, sequences_max)
        };
        let cells = vec![None; limits.blocks * block_tokens];
        let scheduler = Scheduler::new(&limits);
        Self { limits, scheduler, clients: BTreeMap::new(), cells, next_id: 0, digest: 0 }
    }

    fn arrive(&mut self, rng: &mut Rng) {
        let prompt = rng.between(1, self.limits.context_tokens_max);
        let outputs = rng.between(0, self.limits.context_tokens_max - prompt);
        let prompt_logits = rng.chance(25);
        let id = RequestId(self.next_id);
        self.next_id += 1;
        self.scheduler.add(NewSequence { id, prompt_tokens: prompt, prompt_logits });
        let (drawn, scored, computed, drafts) = (0, 0, 0, 0);
        let (paused, started) = (false, false);
        let fresh = Client { prompt, prompt_logits, outputs, drawn, scored, computed, paused, drafts, started };
        self.clients.insert(id, fresh);
    }

    fn any_client(&self, rng: &mut Rng) -> Option<RequestId> {
        let count = self.clients.len();
        (count > 0).then(|| *self.clients.keys().nth(rng.below(count)).expect("below the count"))
    }

    fn set_paused(&mut self, id: RequestId, paused: bool) {
        self.scheduler.set_paused(id, paused);
        self.clients.get_mut(&id).expect("it lives").paused = paused;
    }

    /// One step; false when the scheduler has nothing to run.
    fn step(&mut self, rng: &mut Rng, coverage: &mut Coverage) -> bool {
        let plan = self.scheduler.next_step();
        self.scheduler.check().expect("integrity after planning");
        let Some(plan) = plan else {
            assert!(self.clients.values().all(|c| c.paused), "somebody is ready and nothing runs");
            return false;
        };
        self.check_plan(&plan, coverage);
        let outcomes = plan.slices.iter().map(|slice| self.compute(slice, rng, coverage));
        let outcomes: Vec<SliceOutcome> = outcomes.collect();
        self.scheduler.on_step_done(&plan, &outcomes);
        self.scheduler.check().expect("integrity after the step");
        true
    }

    fn check_plan(&mut self, plan: &StepPlan, coverage: &mut Coverage) {
        assert!(plan.rows() <= self.limits.batch_rows_max && plan.logit_rows() <= self.limits.logit_rows_max);
        let planned: BTreeSet<RequestId> = plan.slices.iter().map(|s| s.id).collect();
        assert_eq!(planned.len(), plan.slices.len(), "a sequence is planned twice");
        let ready = |client: &&Client| !client.paused;
        // The oldest that holds blocks is in every step, so that nobody starves.
        let oldest = self.clients.iter().find(|(id, c)| ready(c) && !self.scheduler.blocks(**id).is_empty());
        assert!(oldest.is_none_or(|(id, _)| planned.contains(id)), "the oldest running sequence was left out");
        // First come, first served.
        let newest = plan.slices.iter().filter(|s| !self.clients[&s.id].started).map(|s| s.id).max();
        let overtaken = self.clients.iter().find(|(id, c)| ready(c) && !c.started && !planned.contains(id));
        if let (Some(newest), Some((&overtaken, _))) = (newest, overtaken) {
            assert!(newest < overtaken, "{newest} overtook {overtaken}");
        }
        coverage.steps += 1;
        coverage.mixed += usize::from(plan.slices[0].rows == 1 && plan.slices.last().is_some_and(|s| s.rows > 1));
        coverage.chunked += plan.slices.iter().filter(|s| !s.reaches_end).count();
        coverage.crowded += usize::from(self.clients.values().filter(ready).count() > planned.len());
        for s in &plan.slices {
            let words = [s.id.0, s.context as u64, s.rows as u64, s.logit_rows as u64, u64::from(s.reaches_end)];
            self.digest = words.iter().fold(self.digest, |digest, &word| mix(digest ^ word).wrapping_add(1));
        }
    }

    fn offer_drafts(&mut self, rng: &mut Rng, percent: usize) {
        for (&id, client) in &mut self.clients {
            client.drafts = if rng.chance(percent) { rng.between(1, 6) } else { 0 };
            self.scheduler.set_drafts(id, client.drafts);
        }
    }

    /// Plays model and client for one slice.
    fn compute(&mut self, slice: &SlicePlan, rng: &mut Rng, coverage: &mut Coverage) -> SliceOutcome {
        let blocks = self.scheduler.blocks(slice.id);
        let client = self.clients.get_mut(&slice.id).expect("aborted sequences are not planned");
        let block_tokens = self.limits.block_tokens;
        let cell =
            |position: usize| blocks[position / block_tokens].0 as usize * block_tokens + position % block_tokens;
        assert!(!client.paused, "a paused sequence is planned");
        assert!(slice.context == client.computed || slice.context == 0, "a step skips or repeats tokens");
        for position in 0..slice.context {
            assert_eq!(self.cells[cell(position)], Some((slice.id, position)), "the cache was overwritten");
        }
        let end = slice.context + slice.rows;
        for position in slice.context..end {
            self.cells[cell(position)] = Some((slice.id, position));
        }
        client.started = true;
        let known = client.prompt + client.drawn;
        assert!(slice.drafts <= client.drafts && (slice.drafts == 0 || slice.reaches_end), "drafts nobody offered");
        let end = end - slice.drafts;
        client.computed = end;
        assert_eq!(slice.reaches_end, end == known, "a slice beyond what is known, or a wrong end");
        assert!(known + slice.drafts <= self.limits.context_tokens_max, "drafts beyond the context");
        coverage.drafts += slice.drafts;
        let first = end + slice.drafts - slice.logit_rows;
        if client.prompt_logits && client.scored < client.prompt {
            let expected = client.scored.max(slice.context).min(end);
            assert_eq!(first, expected, "prompt logits come once each, in order");
            client.scored = client.scored.max(end);
        } else {
            let wanted = usize::from(slice.reaches_end) + slice.drafts;
            assert_eq!(slice.logit_rows, wanted, "logits that nobody wants");
        }
        if !slice.reaches_end {
            return SliceOutcome::Advanced { tokens: 0 };
        }
        assert!(!client.prompt_logits || client.scored == client.prompt, "the prompt was not scored");
        let right = rng.between(0, slice.drafts);
        let tokens = (1 + right).min(client.outputs - client.drawn);
        client.drawn += tokens;
        if client.drawn < client.outputs {
            client.computed += right;
            coverage.right_drafts += right;
            return SliceOutcome::Advanced { tokens };
        }
        self.clients.remove(&slice.id);
        SliceOutcome::Finished
    }
}

/// Runs the trace of one seed; returns the digest of its plans.
fn run(seed: u64, coverage: &mut Coverage) -> u64 {
    let mut rng = Rng::new(seed);
    let mut world = World::new(&mut rng);
    let arrivals = rng.between(1, 14);
    let (abort_percent, pause_percent) = (rng.below(6), rng.below(15));
    let draft_percent = if rng.chance(50) { rng.below(60) } else { 0 };
    while world.next_id < arrivals as u64 || !world.clients.is_empty() {
        if world.next_id < arrivals as u64 && rng.chance(40) {
            world.arrive(&mut rng);
        }
        if let Some(id) = world.any_client(&mut rng) {
            if rng.chance(abort_percent) {
                assert!(world.scheduler.abort(id) && !world.scheduler.abort(id), "an abort ends it once");
                world.clients.remove(&id);
                coverage.aborts += 1;
            } else if rng.chance(pause_percent) {
                world.set_paused(id, true);
                coverage.pauses += 1;
            } else if world.clients[&id].paused && rng.chance(50) {
                world.set_paused(id, false);
            }
        }
        world.offer_drafts(&mut rng, draft_percent);
        world.step(&mut rng, coverage);
        assert!(coverage.steps < 500 * TRACES as usize, "seed {seed} does not end");
    }
    let load = world.scheduler.load();
    assert_eq!((load.running, load.waiting, load.paused, load.kv_blocks_used), (0, 0, 0, 0), "seed {seed} leaks");
    coverage.preemptions += load.preemptions;
    world.digest
}

#[test]
fn every_trace_keeps_every_promise() {
    let mut coverage = Coverage::default();
    for seed in 0..TRACES {
        let digest = run(seed, &mut coverage);
        if seed % 16 == 0 {
            assert_eq!(digest, run(seed, &mut coverage), "seed {seed} is not deterministic");
        }
    }
    let Coverage { steps, mixed, chunked, preemptions, aborts, pauses, crowded, drafts, right_drafts } = coverage;
    println!("{steps} steps, {mixed} mixed, {chunked} chunks, {preemptions} preemptions, {aborts} aborts");
    println!("{pauses} pauses, {crowded} crowded steps, {right_drafts} of {drafts} drafts right");
    let floor = TRACES as usize;
    assert!(steps > 10 * floor && mixed > floor && chunked > floor, "the traces are too easy");
    assert!(preemptions as usize > floor / 10 && aborts > floor / 10 && pauses > floor && crowded > floor);
    assert!(right_drafts > floor / 2 && drafts > right_drafts + floor, "the traces hardly guess");
}
