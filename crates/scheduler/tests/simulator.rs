//! Random traces of arrivals, steps, slow readers, drafts and aborts, with every promise checked at every step.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lingqu_scheduler::{NewSequence, Scheduler, SchedulerConfig, SliceOutcome, SlicePlan, StepPlan};
use lingqu_testkit::rng::{Rng, mix};
use lingqu_types::{Limits, Priority, RequestId, TokenId};

/// Seeds of one run of the test; raise it for a longer one.
const TRACES: u64 = 10_000;

/// Few, so that sequences meet.
const VOCAB: usize = 3;

/// One sequence as its client sees it.
struct Client {
    /// The prompt, then what was drawn.
    tokens: Vec<TokenId>,
    /// What the cache must hold for each token: it follows from all tokens before, and the namespace.
    cells: Vec<u64>,
    prompt: usize,
    namespace: Option<Arc<str>>,
    tenant: Arc<str>,
    priority: Priority,
    prompt_logits: bool,
    /// Tokens it wants before it ends; 0 ends with its prompt.
    outputs: usize,
    /// Two of one seed and one context draw the same.
    seed: u64,
    /// Prompt rows whose logits have come.
    scored: usize,
    computed: usize,
    paused: bool,
    /// Guesses it has offered for the next step.
    drafts: Vec<TokenId>,
    /// It has been in a plan.
    started: bool,
    /// Steps since it came or was last paused.
    ready_steps: usize,
}

impl Client {
    fn known(&self) -> usize {
        self.tokens.len()
    }

    fn drawn(&self) -> usize {
        self.known() - self.prompt
    }

    /// The content of the cell after `cells`.
    fn cell_after(&self, cells: &[u64], token: TokenId) -> u64 {
        let first = self.namespace.as_ref().map_or(self.seed << 8, |n| u64::from(n.as_bytes()[0]));
        mix(cells.last().copied().unwrap_or(first) ^ mix(u64::from(token) + 1))
    }

    fn push(&mut self, token: TokenId) {
        let cell = self.cell_after(&self.cells, token);
        self.tokens.push(token);
        self.cells.push(cell);
    }

    fn next_token(&self) -> TokenId {
        (mix(self.cells[self.known() - 1] ^ self.seed) % VOCAB as u64) as TokenId
    }
}

#[derive(Default)]
struct Coverage {
    steps: usize,
    mixed: usize,
    chunked: usize,
    preemptions: u64,
    aborts: usize,
    failures: usize,
    pauses: usize,
    /// Steps that had work but left out a sequence which was ready, for want of blocks or rows.
    crowded: usize,
    drafts: u64,
    right_drafts: u64,
    found: u64,
    copies: usize,
    evictions: u64,
    /// The longest that anyone was ready, in steps for each token of all sequences of its trace.
    ready_max: f64,
}

struct World {
    limits: Limits,
    scheduler: Scheduler,
    /// Live ones.
    clients: BTreeMap<RequestId, Client>,
    /// Beginnings that prompts share.
    documents: Vec<Vec<TokenId>>,
    cells: Vec<u64>,
    next_id: u64,
    tokens_asked: usize,
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
            prompt_rows_max_with_decodes: rng.below(9),
            logit_rows_max: sequences_max + rng.below(6),
            batch_wait_steps_max: rng.below(60),
            tenants_remembered_max: rng.between(1, 2),
            // From barely one sequence to plenty.
            blocks: context_tokens_max.div_ceil(block_tokens) + rng.below(30),
            ..Limits::for_context(context_tokens_max, sequences_max)
        };
        let cells = vec![0; limits.blocks * block_tokens];
        let tenant_weights = BTreeMap::from([("a".into(), 3), ("b".into(), 0)]);
        let scheduler = Scheduler::new(&SchedulerConfig { limits: limits.clone(), tenant_weights });
        let document = |rng: &mut Rng| (0..context_tokens_max).map(|_| rng.below(VOCAB) as TokenId).collect();
        let documents = (0..3).map(|_| document(rng)).collect();
        let clients = BTreeMap::new();
        Self { limits, scheduler, clients, documents, cells, next_id: 0, tokens_asked: 0, digest: 0 }
    }

    fn arrive(&mut self, rng: &mut Rng) {
        let prompt = rng.between(1, self.limits.context_tokens_max);
        let outputs = rng.between(0, self.limits.context_tokens_max - prompt);
        let document = &self.documents[rng.below(self.documents.len())];
        let shared = if rng.chance(30) { prompt } else { rng.between(0, prompt) };
        let own = (shared..prompt).map(|_| rng.below(VOCAB) as TokenId);
        let tokens: Vec<TokenId> = document[..shared].iter().copied().chain(own).collect();
        let id = RequestId(self.next_id);
        self.next_id += 1;
        self.tokens_asked += prompt + outputs;
        let namespace = [None, Some("x"), Some("y"), Some("y")][rng.below(4)].map(Arc::from);
        let mut client = Client {
            tokens: Vec::new(),
            cells: Vec::new(),
            prompt,
            seed: if namespace.is_some() && rng.chance(50) { 0 } else { id.0 + 1 },
            namespace,
            tenant: Arc::from(["", "a", "b", "c"][rng.below(4)]),
            priority: if rng.chance(40) { Priority::Batch } else { Priority::Interactive },
            prompt_logits: rng.chance(20),
            outputs,
            scored: 0,
            computed: 0,
            paused: false,
            drafts: Vec::new(),
            started: false,
            ready_steps: 0,
        };
        tokens.into_iter().for_each(|token| client.push(token));
        self.scheduler.add(NewSequence {
            prompt_logits: client.prompt_logits,
            priority: client.priority,
            tenant: client.tenant.clone(),
            namespace: client.namespace.clone(),
            ..NewSequence::new(id, prompt)
        });
        self.clients.insert(id, client);
    }

    fn any_client(&self, rng: &mut Rng) -> Option<RequestId> {
        let count = self.clients.len();
        (count > 0).then(|| *self.clients.keys().nth(rng.below(count)).expect("below the count"))
    }

    fn set_paused(&mut self, id: RequestId, paused: bool) {
        self.scheduler.set_paused(id, paused);
        let client = self.clients.get_mut(&id).expect("it lives");
        (client.paused, client.ready_steps) = (paused, 0);
    }

    /// Guesses that are right more often than not.
    fn offer_drafts(&mut self, rng: &mut Rng, percent: usize) {
        for (&id, client) in &mut self.clients {
            client.drafts.clear();
            if rng.chance(percent) {
                let mut cells = client.cells.clone();
                for _ in 0..rng.between(1, 6) {
                    let next = (mix(cells[cells.len() - 1] ^ client.seed) % VOCAB as u64) as TokenId;
                    let guess = if rng.chance(70) { next } else { rng.below(VOCAB) as TokenId };
                    cells.push(client.cell_after(&cells, guess));
                    client.drafts.push(guess);
                }
            }
            self.scheduler.set_drafts(id, client.drafts.len());
        }
    }

    /// One step; false when the scheduler has nothing to run.
    fn step(&mut self, rng: &mut Rng, coverage: &mut Coverage) -> bool {
        let clients = &self.clients;
        let ran: BTreeSet<RequestId> =
            clients.keys().copied().filter(|&id| !self.scheduler.blocks(id).is_empty()).collect();
        let plan = self.scheduler.next_step(&|id| &clients[&id].tokens);
        self.scheduler.check().expect("integrity after planning");
        let Some(plan) = plan else {
            assert!(self.clients.values().all(|c| c.paused), "somebody is ready and nothing runs");
            return false;
        };
        self.check_plan(&plan, &ran, coverage);
        for (from, to) in &plan.copies {
            let block = |id: u32| id as usize * self.limits.block_tokens;
            self.cells.copy_within(block(from.0)..block(from.0) + self.limits.block_tokens, block(to.0));
        }
        coverage.copies += plan.copies.len();
        let outcomes = plan.slices.iter().map(|slice| self.compute(slice, rng));
        let outcomes: Vec<SliceOutcome> = outcomes.collect();
        let clients = &self.clients;
        self.scheduler.on_step_done(&plan, &outcomes, &|id| &clients[&id].tokens);
        for (slice, outcome) in plan.slices.iter().zip(&outcomes) {
            if !matches!(outcome, SliceOutcome::Advanced { .. }) {
                self.clients.remove(&slice.id);
                coverage.failures += usize::from(*outcome == SliceOutcome::Failed);
            }
        }
        self.scheduler.check().expect("integrity after the step");
        true
    }

    fn check_plan(&mut self, plan: &StepPlan, ran: &BTreeSet<RequestId>, coverage: &mut Coverage) {
        let limits = &self.limits;
        assert!(plan.rows() <= limits.batch_rows_max && plan.logit_rows() <= limits.logit_rows_max);
        let planned: BTreeSet<RequestId> = plan.slices.iter().map(|s| s.id).collect();
        assert_eq!(planned.len(), plan.slices.len(), "a sequence is planned twice");
        let decodes = |id: &RequestId, c: &Client| {
            let runs = ran.contains(id) && !self.scheduler.blocks(*id).is_empty();
            runs && !c.paused && c.computed + 1 == c.known()
        };
        // Who decodes is in every step, however long the prompts of others are.
        let left_out = self.clients.iter().find(|(id, c)| decodes(id, c) && !planned.contains(id));
        assert!(left_out.is_none_or(|(id, _)| self.scheduler.blocks(*id).is_empty()), "a decode was left out");
        let (decoding, prompts): (Vec<&SlicePlan>, Vec<_>) =
            plan.slices.iter().partition(|s| decodes(&s.id, &self.clients[&s.id]));
        let prompt_rows: usize = prompts.iter().map(|s| s.rows).sum();
        let bound = limits.prompt_rows_max_with_decodes;
        assert!(bound == 0 || decoding.is_empty() || prompt_rows <= bound, "prompts hold up the tokens of others");
        self.check_order(&planned);
        coverage.steps += 1;
        coverage.mixed += usize::from(!decoding.is_empty() && prompt_rows > 0);
        coverage.chunked += plan.slices.iter().filter(|s| !s.reaches_end).count();
        coverage.crowded += usize::from(self.clients.values().filter(|c| !c.paused).count() > planned.len());
        for client in self.clients.values_mut().filter(|c| !c.paused) {
            client.ready_steps += 1;
            coverage.ready_max = coverage.ready_max.max(client.ready_steps as f64 / (self.tokens_asked + 60) as f64);
        }
        for s in &plan.slices {
            let words = [s.id.0, s.context as u64, s.rows as u64, s.logit_rows as u64, u64::from(s.reaches_end)];
            self.digest = words.iter().fold(self.digest, |digest, &word| mix(digest ^ word).wrapping_add(1));
        }
    }

    /// Within a tenant and a priority: first come, first served, unless somebody waits for another's blocks.
    fn check_order(&self, planned: &BTreeSet<RequestId>) {
        let plain =
            |c: &Client| c.namespace.is_none() && c.priority == Priority::Interactive && !c.started && !c.paused;
        for tenant in ["", "a", "b", "c"] {
            let fresh = self.clients.iter().filter(|(_, c)| plain(c) && *c.tenant == *tenant);
            let (came, left): (Vec<&RequestId>, Vec<&RequestId>) =
                fresh.map(|(id, _)| id).partition(|id| planned.contains(id));
            if let (Some(newest), Some(overtaken)) = (came.last(), left.first()) {
                assert!(newest < overtaken, "{newest} overtook {overtaken}");
            }
        }
    }

    /// Plays model and client for one slice.
    fn compute(&mut self, slice: &SlicePlan, rng: &mut Rng) -> SliceOutcome {
        let blocks = self.scheduler.blocks(slice.id);
        let client = self.clients.get_mut(&slice.id).expect("aborted sequences are not planned");
        let block_tokens = self.limits.block_tokens;
        let at = |position: usize| blocks[position / block_tokens].0 as usize * block_tokens + position % block_tokens;
        assert!(!client.paused, "a paused sequence is planned");
        let is_found = slice.context > client.computed && client.namespace.is_some();
        assert!(slice.context <= client.computed || is_found, "a step skips tokens");
        for position in 0..slice.context {
            assert_eq!(self.cells[at(position)], client.cells[position], "the cache holds something else");
        }
        let mut cells = client.cells[..slice.context].to_vec();
        let given = client.tokens[slice.context..].iter().chain(&client.drafts).take(slice.rows);
        for (position, &token) in (slice.context..).zip(given) {
            cells.push(client.cell_after(&cells, token));
            self.cells[at(position)] = cells[position];
        }
        let known = client.known();
        assert!(slice.drafts <= client.drafts.len() && (slice.drafts == 0 || slice.reaches_end));
        assert_eq!(slice.reaches_end, slice.end() == known, "a slice beyond what is known, or a wrong end");
        assert!(known + slice.drafts <= self.limits.context_tokens_max, "drafts beyond the context");
        client.started = true;
        client.computed = slice.end();
        check_logits(client, slice);
        if rng.chance(1) {
            return SliceOutcome::Failed;
        }
        if !slice.reaches_end {
            return SliceOutcome::Advanced { tokens: 0 };
        }
        assert!(!client.prompt_logits || client.scored >= client.prompt, "the prompt was not scored");
        if client.drawn() >= client.outputs {
            return SliceOutcome::Finished;
        }
        for draft in 0..=slice.drafts {
            let token = client.next_token();
            client.push(token);
            if client.drawn() == client.outputs {
                return SliceOutcome::Finished;
            }
            if draft == slice.drafts || client.drafts[draft] != token {
                client.computed += draft;
                return SliceOutcome::Advanced { tokens: draft + 1 };
            }
        }
        unreachable!("the last row says a token")
    }
}

fn check_logits(client: &mut Client, slice: &SlicePlan) {
    let end = slice.context + slice.rows;
    let first = end - slice.logit_rows;
    if client.prompt_logits && client.scored < client.prompt {
        let expected = client.scored.max(slice.context).min(end);
        assert_eq!(first, expected, "prompt logits come once each, in order");
        assert!(slice.context <= client.scored, "rows whose logits are wanted were not computed");
        client.scored = client.scored.max(slice.end());
    } else {
        let wanted = usize::from(slice.reaches_end) + slice.drafts;
        assert_eq!(slice.logit_rows, wanted, "logits that nobody wants");
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
    }
    let load = world.scheduler.load();
    let live = (load.running, load.waiting, load.paused, load.tenants);
    assert_eq!((live, load.kv_blocks_used), ((0, 0, 0, 0), 0), "seed {seed} leaks");
    coverage.preemptions += load.preemptions;
    coverage.evictions += load.kv_evictions;
    coverage.found += load.cached_tokens;
    coverage.drafts += load.drafted;
    coverage.right_drafts += load.accepted;
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
    let Coverage { steps, mixed, chunked, preemptions, aborts, pauses, crowded, .. } = coverage;
    let Coverage { failures, drafts, right_drafts, found, copies, evictions, ready_max, .. } = coverage;
    println!("{steps} steps, {mixed} mixed, {chunked} chunks, {preemptions} preemptions, {aborts} aborts");
    println!("{pauses} pauses, {crowded} crowded steps, {right_drafts} of {drafts} drafts right, {failures} failures");
    println!("{found} tokens found, {copies} copies, {evictions} evictions, waits up to {ready_max:.2}");
    let floor = TRACES as usize;
    assert!(steps > 10 * floor && mixed > floor && chunked > floor, "the traces are too easy");
    assert!(preemptions as usize > floor / 10 && aborts > floor / 10 && failures > floor / 10, "little goes wrong");
    assert!(pauses > floor && crowded > floor, "the traces are too easy");
    assert!(right_drafts > floor as u64 && drafts > right_drafts + floor as u64, "the traces hardly guess");
    assert!(found > 4 * floor as u64 && copies > floor / 20 && evictions > floor as u64, "little is shared");
    assert!(ready_max < 1.0, "somebody waited for {ready_max} steps for each token of all");
}
