//! One run: a cluster, its faults, and what must hold whatever happens.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lingqu_backend::{Backend, Buffer, Exchange, FfnSource, HostRouting, LocalExchange, PendingExperts, Routing};
use lingqu_backend_cpu::{CpuBackend, CpuConfig};
use lingqu_placement::{RebalanceGoal, place};
use lingqu_tensor::HostTensor;
use lingqu_testkit::rng::Rng;

use super::network::{Harm, Network, SimFabric};
use super::plan::{Event, Fault, Impostor, Plan, ms};
use super::turns::{Handle, Simulated};
use crate::exchange::{Parts, placement_input};
use crate::experts::Held;
use crate::{ClusterControl, ClusterExchange, Identity, Model, PairExchange, Shard, WireFormat, Worker, WorkerId};

const HIDDEN: usize = 8;
const EXPERTS: usize = 6;
const TOP_K: usize = 2;
const ROWS_MAX: usize = 4;
/// The first one is dense.
const LAYERS: usize = 3;
const FINGERPRINT: [u8; 32] = [7; 32];
/// Whoever is well is called again within so long, and has loaded what is its own.
const SETTLES: Duration = ms(12_000);

/// A model of two layers of experts, used again from run to run.
pub(super) struct Bench {
    backend: Arc<dyn Backend>,
    /// `[LAYERS][EXPERTS]`
    sources: Vec<Vec<FfnSource>>,
    model: Model,
    /// One process: by wire.
    alone: Vec<Arc<dyn Exchange>>,
}

impl Bench {
    pub fn new() -> Self {
        let backend: Arc<dyn Backend> =
            Arc::new(CpuBackend::new(CpuConfig { threads: 1, ..CpuConfig::default() }).expect("a CPU"));
        let mut rng = Rng::new(1);
        let mut tensor = |name: &str| {
            let values: Vec<f32> = (0..HIDDEN * HIDDEN).map(|_| rng.between(0, 2000) as f32 / 1000.0 - 1.0).collect();
            HostTensor::from_f32(name, [HIDDEN, HIDDEN], &values)
        };
        let mut source = || FfnSource { gate: tensor("gate"), up: tensor("up"), down: tensor("down") };
        let sources: Vec<Vec<FfnSource>> = (0..LAYERS).map(|_| (0..EXPERTS).map(|_| source()).collect()).collect();
        let model = Model {
            fingerprint: FINGERPRINT,
            rows_max: ROWS_MAX,
            hidden: HIDDEN,
            experts: EXPERTS,
            top_k: TOP_K,
            expert_bytes: vec![0, 768, 768],
        };
        let upload = |layer: usize| (layer > 0).then(|| backend.upload_experts(&sources[layer]).expect("tiny"));
        let exact = LocalExchange::new(Arc::clone(&backend), (0..LAYERS).map(upload).collect());
        let mut alone: Vec<Arc<dyn Exchange>> = vec![Arc::new(exact)];
        for wire in [WireFormat::Bf16, WireFormat::Int8] {
            let shard = shard(&backend, &sources, Arc::default());
            alone.push(Arc::new(PairExchange::new(Arc::clone(&backend), shard, wire, &model).expect("it fits")));
        }
        Self { alone, backend, sources, model }
    }
}

fn shard(backend: &Arc<dyn Backend>, sources: &[Vec<FfnSource>], declines: Arc<AtomicBool>) -> Shard {
    let (of_load, sources) = (Arc::clone(backend), sources.to_vec());
    let load = move |layer: usize, experts: &[usize]| {
        if declines.load(Ordering::SeqCst) {
            return Err("out of memory".to_owned());
        }
        let chosen: Vec<FfnSource> = experts.iter().map(|&expert| sources[layer][expert].clone()).collect();
        of_load.upload_experts(&chosen).map_err(|e| e.to_string())
    };
    Shard::new(Arc::clone(backend), HIDDEN, Box::new(load)).expect("buffers")
}

/// What a run came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Of all messages: equal if and only if the runs were.
    pub trace: u64,
    pub messages: u64,
    pub steps: u64,
    /// Steps that failed since nobody had an expert, as they may.
    pub unavailable: u64,
    pub fenced: u64,
    pub adopted: u64,
    /// The longest step that came to an end, from its beginning.
    pub longest: Duration,
    pub time: Duration,
}

pub(super) fn run(seed: u64, bench: &Arc<Bench>) -> Result<Outcome, String> {
    let (plan, bench) = (Plan::draw(seed), Arc::clone(bench));
    Simulated::run(plan.seed, move |machine| World::new(machine, plan, bench).run())
}

struct World {
    machine: Arc<Simulated>,
    network: Arc<Network>,
    plan: Plan,
    bench: Arc<Bench>,
    /// By worker: since when nothing is wrong with it.
    well_since: Mutex<BTreeMap<u32, Option<Duration>>>,
}

impl World {
    fn new(machine: &Arc<Simulated>, plan: Plan, bench: Arc<Bench>) -> Arc<Self> {
        let network = Network::new(machine, plan.speeds, plan.seed);
        let well = plan.config.workers.iter().map(|worker| (worker.id, Some(Duration::ZERO))).collect();
        Arc::new(Self { machine: Arc::clone(machine), network, plan, bench, well_since: Mutex::new(well) })
    }

    fn run(self: Arc<Self>) -> Result<Outcome, String> {
        for worker in &self.plan.config.workers {
            self.start_worker(worker.id, None, false);
        }
        let input = placement_input(&self.plan.config, &self.bench.model).map_err(|e| e.to_string())?;
        let exchange = ClusterExchange::on_machine(Parts {
            machine: Arc::new(Handle(Arc::clone(&self.machine))),
            config: &self.plan.config,
            fabric: Box::new(SimFabric(Arc::clone(&self.network))),
            device: Arc::clone(&self.bench.backend),
            model: &self.bench.model,
            placement: place(&input).map_err(|e| e.to_string())?,
        });
        let exchange = exchange.map_err(|error| format!("it does not start: {error}"))?;
        let (faults, control) = (Arc::clone(&self), exchange.control());
        let run = Box::new(move || faults.disturb(&control));
        self.machine.spawn("faults".into(), run).map_err(|e| e.to_string())?;

        let mut steps = Steps::new(&self, &exchange);
        for &pause in &self.plan.pauses {
            self.machine.sleep(pause);
            steps.step()?;
        }
        self.machine.sleep((self.plan.heals() + SETTLES).saturating_sub(self.machine.time()));
        steps.step()?;
        if !steps.succeeded {
            return Err("it does not heal: a step fails long after the last fault".into());
        }
        check_all_is_well(&exchange)?;
        let mut outcome = steps.outcome;
        (outcome.fenced, outcome.adopted) = (exchange.traffic().fenced, exchange.traffic().adopted);
        drop(exchange);
        for worker in &self.plan.config.workers {
            self.network.kill(worker.id);
        }
        outcome.time = self.machine.time();
        (outcome.trace, outcome.messages) = self.network.trace();
        match self.network.violations().first() {
            Some(violation) => Err(violation.clone()),
            None => Ok(outcome),
        }
    }

    /// A process that listens as worker `node`.
    fn start_worker(&self, node: u32, impostor: Option<Impostor>, declines: bool) {
        let shard = shard(&self.bench.backend, &self.bench.sources, Arc::new(AtomicBool::new(declines)));
        let mut identity =
            Identity { id: WorkerId(node), fingerprint: FINGERPRINT, arithmetic: "simulated".to_owned() };
        match impostor {
            Some(Impostor::Fingerprint) => identity.fingerprint[5] ^= 1,
            Some(Impostor::Number) => identity.id.0 += 1,
            Some(Impostor::Arithmetic) => identity.arithmetic.push('?'),
            Some(Impostor::Secret) => self.network.harm(node, |harm| harm.is_stranger = true),
            None => {}
        }
        let worker = Worker::on_machine(Arc::new(Handle(Arc::clone(&self.machine))), shard, identity);
        let listener = self.network.start(node);
        let serve = Box::new(move || {
            worker.serve(&*listener);
        });
        self.machine.spawn(format!("worker {node}"), serve).expect("threads");
    }

    fn replace(&self, node: u32, impostor: Option<Impostor>, declines: bool) {
        self.network.kill(node);
        self.start_worker(node, impostor, declines);
    }

    /// Does what the plan says.
    fn disturb(&self, control: &ClusterControl) {
        let of = |event: &Event| [(event.begins, true, *event), (event.ends, false, *event)];
        let mut all: Vec<(Duration, bool, Event)> = self.plan.events.iter().flat_map(of).collect();
        // An end comes before the beginning of the next one.
        all.sort_by_key(|(at, begins, event)| (*at, event.node, *begins));
        for (at, begins, event) in all {
            self.machine.sleep(at.saturating_sub(self.machine.time()));
            let well = if begins { None } else { Some(self.machine.time()) };
            self.well_since.lock().expect("nobody panics here").insert(event.node, well);
            if begins { self.begin(event, control) } else { self.end(event, control) }
        }
    }

    fn begin(&self, Event { node, fault, ends, .. }: Event, control: &ClusterControl) {
        let id = WorkerId(node);
        match fault {
            // Not all of that is possible at any moment.
            Fault::Drain => drop(control.drain(id)),
            Fault::Leave => drop(control.leave(id)),
            Fault::Rebalance => {
                drop(control.rebalance(RebalanceGoal { imbalance_wanted: 1.05, loads_max: usize::MAX }));
            }
            Fault::Kill => self.network.kill(node),
            Fault::HangUp => self.network.hang_up(node),
            Fault::Replace(impostor) => self.replace(node, Some(impostor), false),
            Fault::Decline => self.replace(node, None, true),
            Fault::Freeze => self.network.harm(node, |harm| harm.frozen = ends),
            Fault::Garble(reader) => self.network.harm(node, |harm| harm.garbles[reader] = true),
            Fault::Repeat => self.network.harm(node, |harm| harm.repeats = true),
            Fault::Slow(by) => self.network.harm(node, |harm| harm.slow = (ends, by)),
            Fault::Lossy(percent) => self.network.harm(node, |harm| harm.lossy = (ends, percent)),
        }
    }

    fn end(&self, Event { node, fault, .. }: Event, control: &ClusterControl) {
        match fault {
            Fault::Drain => control.undrain(WorkerId(node)).expect("it is known"),
            Fault::Leave => control.join(&self.plan.config.workers[node as usize]).expect("it is known"),
            Fault::Rebalance => {}
            Fault::Kill => self.start_worker(node, None, false),
            Fault::Replace(_) | Fault::Decline => self.replace(node, None, false),
            _ => self.network.harm(node, |harm| *harm = Harm::default()),
        }
    }

    /// Workers with which nothing was wrong since `time`.
    fn well_since(&self, time: Duration) -> Vec<WorkerId> {
        let all = self.well_since.lock().expect("nobody panics here");
        all.iter().filter(|(_, since)| since.is_some_and(|s| s <= time)).map(|(&id, _)| WorkerId(id)).collect()
    }
}

/// Every worker is there, with all that is its own and nothing else.
fn check_all_is_well(exchange: &ClusterExchange) -> Result<(), String> {
    let members = exchange.members();
    let roster = members.roster();
    for peer in &roster.peers {
        if peer.session.is_none() {
            return Err(format!("it does not heal: {} is not there: {:?}", peer.id, peer.problem));
        }
        for layer in members.model.expert_layers() {
            let all = |held: &Held| held.of(layer).iter().collect::<Vec<usize>>();
            let [held, wanted] = [&peer.held, &peer.wanted].map(all);
            if held != wanted {
                return Err(format!("it does not heal: {} has {held:?} of layer {layer}, not {wanted:?}", peer.id));
            }
        }
    }
    Ok(())
}

/// Rows of a step, or of half of one.
struct Rows {
    x: Buffer,
    out: Buffer,
    routing: Routing,
    experts: Vec<u32>,
}

impl Rows {
    fn new(backend: &dyn Backend) -> Self {
        let alloc = || backend.alloc(ROWS_MAX, HIDDEN).expect("tiny");
        let routing = backend.alloc_routing(ROWS_MAX, TOP_K).expect("tiny");
        Self { x: alloc(), out: alloc(), routing, experts: Vec::new() }
    }

    /// Other rows, and other experts that they meet.
    fn draw(&mut self, backend: &dyn Backend, rng: &mut Rng) {
        let rows = rng.between(1, ROWS_MAX);
        let values: Vec<f32> = (0..rows * HIDDEN).map(|_| rng.between(0, 4000) as f32 / 1000.0 - 2.0).collect();
        let mut host = HostRouting { top_k: TOP_K, ..HostRouting::default() };
        for _ in 0..rows {
            let first = rng.below(EXPERTS);
            let second = (first + 1 + rng.below(EXPERTS - 1)) % EXPERTS;
            host.experts.extend([first as u32, second as u32]);
            host.weights.extend([0.7, 0.3 + rng.below(9) as f32 / 10.0]);
        }
        self.x.set_rows(rows);
        self.out.set_rows(rows);
        backend.write(&values, self.x.view_mut()).expect("tiny");
        backend.write_routing(&host, &mut self.routing).expect("tiny");
        self.experts = host.experts;
    }

    fn begin(&self, exchange: &dyn Exchange, layer: usize) -> Result<PendingExperts, String> {
        exchange.begin(layer, self.x.view(), &self.routing).map_err(|e| e.to_string())
    }

    /// Bits of the result.
    fn finish(
        &mut self,
        exchange: &dyn Exchange,
        backend: &dyn Backend,
        pending: PendingExperts,
    ) -> Result<Vec<u32>, String> {
        let out = self.out.view_mut();
        exchange.finish(pending, self.x.view(), &self.routing, out).map_err(|e| e.to_string())?;
        let mut values = vec![0.0; self.out.rows() * HIDDEN];
        backend.read(self.out.view(), &mut values).expect("tiny");
        Ok(values.iter().map(|value| value.to_bits()).collect())
    }
}

/// Asks the cluster what one process can say too.
struct Steps<'a> {
    world: &'a World,
    exchange: &'a ClusterExchange,
    rng: Rng,
    halves: [Rows; 2],
    /// The last one.
    succeeded: bool,
    outcome: Outcome,
}

impl<'a> Steps<'a> {
    fn new(world: &'a World, exchange: &'a ClusterExchange) -> Self {
        let halves = [0, 1].map(|_| Rows::new(&*world.bench.backend));
        let (rng, outcome) = (Rng::new(world.plan.seed), Outcome::default());
        Self { world, exchange, rng, halves, succeeded: true, outcome }
    }

    /// All layers, at once or in halves; after a failure the rest is left, as a model does.
    fn step(&mut self) -> Result<(), String> {
        self.outcome.steps += 1;
        let count = if self.rng.chance(40) { 2 } else { 1 };
        for layer in 1..LAYERS {
            let world = self.world;
            let backend = &*world.bench.backend;
            self.halves[..count].iter_mut().for_each(|half| half.draw(backend, &mut self.rng));
            let began = world.machine.time();
            let found = self.ask(layer, count);
            let took = world.machine.time() - began;
            self.check_time(took)?;
            match found {
                Ok(found) => {
                    let alone = &*world.bench.alone[world.plan.config.wire as usize];
                    for (half, found) in self.halves.iter_mut().zip(found) {
                        let pending = half.begin(alone, layer).expect("one process does not fail");
                        if half.finish(alone, backend, pending).expect("one process does not fail") != found {
                            return Err(format!("other bits at {began:?}, step {}", self.outcome.steps));
                        }
                    }
                    self.succeeded = true;
                    self.outcome.longest = self.outcome.longest.max(took);
                }
                Err(error) => {
                    self.check_failure(layer, count, took).map_err(|what| format!("{what}: {error}"))?;
                    self.succeeded = false;
                    self.outcome.unavailable += 1;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// One half is begun before the other one is waited for.
    fn ask(&mut self, layer: usize, count: usize) -> Result<Vec<Vec<u32>>, String> {
        let (world, exchange) = (self.world, self.exchange);
        let mut begun = Vec::new();
        for half in &self.halves[..count] {
            begun.push(half.begin(exchange, layer)?);
            // The shared expert.
            let busy = [0, 0, 200, 3000, 600_000][self.rng.below(5)];
            world.machine.sleep(Duration::from_micros(self.rng.below(busy + 1) as u64));
        }
        let backend = &*world.bench.backend;
        self.halves.iter_mut().zip(begun).map(|(half, pending)| half.finish(exchange, backend, pending)).collect()
    }

    /// Every wait is bounded, and every round that fails costs a worker.
    fn check_time(&self, took: Duration) -> Result<(), String> {
        let deadlines = self.world.plan.config.deadlines;
        let round = ms(4 * (deadlines.step_ms + deadlines.load_ms));
        let rounds = self.world.plan.config.workers.len() + self.world.plan.events.len() + 1;
        let bound = ms(deadlines.recovery_ms + 2 * 600) + round * rounds as u32;
        if took > bound { Err(format!("a step took {took:?}, more than {bound:?}")) } else { Ok(()) }
    }

    /// A step may fail if for as long as it is to wait nobody was well who has an expert of it or may load it.
    fn check_failure(&self, layer: usize, count: usize, took: Duration) -> Result<(), String> {
        let recovery = ms(self.world.plan.config.deadlines.recovery_ms);
        let now = self.world.machine.time();
        let well = now.checked_sub(recovery).map(|since| self.world.well_since(since)).unwrap_or_default();
        let placement = self.exchange.placement();
        let placed = &placement.layers[layer];
        let is_covered = |&expert: &u32| placed.copies[expert as usize].iter().any(|id| well.contains(id));
        let may_load = self.world.plan.config.placement.adopt && !well.is_empty();
        let mut experts = self.halves[..count].iter().flat_map(|half| &half.experts);
        if may_load || experts.all(is_covered) {
            return Err(format!("a step fails at {now:?} although {well:?} are well"));
        }
        if self.succeeded && took < recovery {
            return Err(format!("a step fails after {took:?}, without waiting for recovery"));
        }
        Ok(())
    }
}
