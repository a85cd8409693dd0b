//! Who goes first: priorities, shares of tenants, shared beginnings.

use std::collections::BTreeMap;
use std::sync::Arc;

use lingqu_scheduler::{NewSequence, Scheduler, SchedulerConfig, SliceOutcome, StepPlan};
use lingqu_types::{Limits, Priority, RequestId, TokenId};

/// Sequences that draw a given number of tokens and end.
struct World {
    scheduler: Scheduler,
    /// Tokens so far, and the number at which it ends.
    live: BTreeMap<RequestId, (Vec<TokenId>, usize)>,
    next_id: u64,
    /// Ends, with the step.
    ended: BTreeMap<RequestId, usize>,
    steps: usize,
}

impl World {
    fn new(limits: Limits, weights: &[(&str, u32)]) -> Self {
        let tenant_weights = weights.iter().map(|&(name, weight)| (Arc::from(name), weight)).collect();
        let scheduler = Scheduler::new(&SchedulerConfig { limits, tenant_weights });
        Self { scheduler, live: BTreeMap::new(), next_id: 0, ended: BTreeMap::new(), steps: 0 }
    }

    fn add(&mut self, tokens: Vec<TokenId>, outputs: usize, edit: impl FnOnce(&mut NewSequence)) -> RequestId {
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let mut new = NewSequence::new(id, tokens.len());
        edit(&mut new);
        self.scheduler.add(new);
        let end = tokens.len() + outputs;
        self.live.insert(id, (tokens, end));
        id
    }

    fn step(&mut self) -> StepPlan {
        let live = &self.live;
        let plan = self.scheduler.next_step(&|id| &live[&id].0).expect("there is work");
        let mut outcomes = Vec::new();
        for slice in &plan.slices {
            let (tokens, end) = self.live.get_mut(&slice.id).expect("it lives");
            if slice.reaches_end {
                tokens.push(9);
            }
            outcomes.push(match tokens.len() == *end {
                true => SliceOutcome::Finished,
                false => SliceOutcome::Advanced { tokens: usize::from(slice.reaches_end) },
            });
        }
        let live = &self.live;
        self.scheduler.on_step_done(&plan, &outcomes, &|id| &live[&id].0);
        self.scheduler.check().expect("integrity");
        for (slice, outcome) in plan.slices.iter().zip(&outcomes) {
            if *outcome == SliceOutcome::Finished {
                self.live.remove(&slice.id);
                self.ended.insert(slice.id, self.steps);
            }
        }
        self.steps += 1;
        plan
    }

    fn run(&mut self) {
        while !self.live.is_empty() {
            self.step();
        }
    }
}

fn limits(sequences_max: usize) -> Limits {
    Limits { block_tokens: 4, blocks: 500, batch_rows_max: 32, ..Limits::for_context(200, sequences_max) }
}

fn batch(new: &mut NewSequence) {
    new.priority = Priority::Batch;
}

fn of(tenant: &'static str) -> impl Fn(&mut NewSequence) {
    move |new| new.tenant = tenant.into()
}

fn shared(new: &mut NewSequence) {
    new.namespace = Some("".into());
}

#[test]
fn interactive_requests_take_the_places_of_batch_ones() {
    let mut world = World::new(limits(2), &[]);
    let slow: Vec<_> = (0..2).map(|_| world.add(vec![1; 8], 100, batch)).collect();
    world.step();
    let quick: Vec<_> = (0..3).map(|_| world.add(vec![2; 8], 5, |_| ())).collect();
    world.run();
    assert!(quick.iter().all(|id| world.ended[id] < 20), "{:?}", world.ended);
    assert!(slow.iter().all(|id| world.ended[id] > 90), "{:?}", world.ended);
}

#[test]
fn batch_requests_are_not_starved() {
    let limits = Limits { batch_wait_steps_max: 50, ..limits(2) };
    let mut world = World::new(limits, &[]);
    let starved = world.add(vec![1; 100], 20, batch);
    // More interactive ones than can ever run, always.
    while world.live.contains_key(&starved) {
        assert!(world.steps < 50 + 16 + 2 * (100 + 20), "it starves");
        while world.scheduler.load().waiting < 4 {
            world.add(vec![2; 30], 3, |_| ());
        }
        world.step();
    }
    assert!(world.steps > 50, "it was let in before its time");
}

#[test]
fn tenants_share_by_weight() {
    let mut world = World::new(limits(4), &[("heavy", 3), ("light", 1)]);
    let mut rows = BTreeMap::from([("heavy", 0usize), ("light", 0), ("late", 0)]);
    let mut owner = BTreeMap::new();
    for step in 0..3000 {
        let here: &[&'static str] = if step < 1500 { &["heavy", "light"] } else { &["heavy", "light", "late"] };
        for &tenant in here {
            while owner.iter().filter(|(id, t)| **t == tenant && world.live.contains_key(id)).count() < 6 {
                let id = world.add(vec![1; 20], 10, of(tenant));
                owner.insert(id, tenant);
            }
        }
        let plan = world.step();
        owner.retain(|id, _| world.live.contains_key(id) || plan.slices.iter().any(|s| s.id == *id));
        for slice in &plan.slices {
            *rows.get_mut(owner[&slice.id]).expect("known") += slice.rows;
        }
        if step == 1499 {
            let share = rows["heavy"] as f64 / rows["light"] as f64;
            assert!((2.5..3.5).contains(&share), "{rows:?}");
            rows.values_mut().for_each(|rows| *rows = 0);
        }
    }
    // Whoever comes late has no claim to what it did not use: of weights 3, 1 and 1.
    let share = rows["late"] as f64 / rows["light"] as f64;
    assert!((0.8..1.25).contains(&share), "{rows:?}");
}

#[test]
fn a_flood_of_one_tenant_does_not_hold_up_another() {
    let mut world = World::new(limits(2), &[]);
    (0..100).for_each(|_| _ = world.add(vec![1; 50], 10, of("flood")));
    (0..30).for_each(|_| _ = world.step());
    let single = world.add(vec![2; 10], 5, of("calm"));
    let came = world.steps;
    world.run();
    assert!(world.ended[&single] - came < 25, "{}", world.ended[&single] - came);
}

#[test]
fn a_shared_document_is_computed_once() {
    let mut world = World::new(limits(8), &[]);
    let document: Vec<TokenId> = (0..160).collect();
    for question in 0..8 {
        world.add([&document[..], &[500 + question, 1, 2]].concat(), 4, shared);
    }
    (0..4).for_each(|_| _ = world.add(document.clone(), 4, shared));
    world.run();
    let load = world.scheduler.load();
    // The document, eight questions, the last token of four equal prompts, and answers but for their last tokens.
    assert_eq!(load.computed_tokens, 160 + 8 * 3 + 4 + 12 * 3, "{load:?}");
    assert_eq!(load.kv_blocks_used, 0);
}

#[test]
fn nothing_is_shared_between_namespaces() {
    let mut world = World::new(limits(4), &[]);
    for namespace in ["a", "b", "a"] {
        world.add(vec![1; 100], 1, |new| new.namespace = Some(namespace.into()));
        world.run();
    }
    world.add(vec![1; 100], 1, |_| ());
    world.run();
    assert_eq!(world.scheduler.load().cached_tokens, 99);
}

#[test]
fn prompts_do_not_hold_up_the_tokens_of_others() {
    let limits = Limits { prompt_rows_max_with_decodes: 5, ..limits(4) };
    let mut world = World::new(limits, &[]);
    let talking = world.add(vec![1; 4], 60, |_| ());
    world.step();
    world.add(vec![2; 150], 1, |_| ());
    while world.live.contains_key(&talking) {
        let plan = world.step();
        assert!(plan.slices[0].id == talking && plan.rows() <= 6, "{plan:?}");
    }
}
