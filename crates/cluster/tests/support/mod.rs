//! Golden models in clusters of threads, and a small engine that runs a sequence.

#![allow(dead_code)] // Each test file uses a part.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lingqu_backend::{Backend, Exchange, KvPrecision, KvSpec, KvStore};
use lingqu_backend_cpu::{CpuBackend, CpuConfig, Isa};
use lingqu_cluster::{
    ClusterConfig, ClusterError, ClusterExchange, Deadlines, FabricName, Identity, Model, Placement, PlacementConfig,
    Shard, WireFormat, Worker, WorkerConfig, WorkerId,
};
use lingqu_fabric::{Fabric, Secret, TcpFabric};
use lingqu_model::{Experts, LoadOptions, Package, load_routed_experts, load_with_experts, routed_expert_bytes};
use lingqu_types::{Batch, BlockId, SequenceSlice, TokenId};

pub const ROWS_MAX: usize = 16;
const CONTEXT_MAX: usize = 64;
const BLOCK_TOKENS: usize = 16;
/// Of every run: as a prompt in two parts, then one by one.
const PROMPT: usize = 14;
const DECODED: usize = 6;

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

pub fn package(model: &str) -> Arc<Package> {
    let path = match model {
        "default" => root().join("models/default"),
        model => root().join("testdata/golden/models").join(model),
    };
    Arc::new(Package::open(&path).unwrap_or_else(|error| panic!("{model}: {error}")))
}

pub fn cpu(isa: Option<Isa>) -> Arc<dyn Backend> {
    Arc::new(CpuBackend::new(CpuConfig { threads: 1, isa, ..CpuConfig::default() }).expect("a CPU"))
}

pub fn shape(package: &Package) -> Model {
    let config = &package.config;
    let moe = config.moe.as_ref().expect("a mixture");
    Model {
        fingerprint: package.checkpoint.fingerprint(),
        rows_max: ROWS_MAX,
        hidden: config.hidden,
        experts: moe.route.experts,
        top_k: moe.route.top_k,
        expert_bytes: routed_expert_bytes(package, config.layers),
    }
}

pub fn shard(package: &Arc<Package>, backend: &Arc<dyn Backend>) -> Shard {
    let (package, of_load) = (Arc::clone(package), Arc::clone(backend));
    let hidden = package.config.hidden;
    let load = move |layer: usize, experts: &[usize]| {
        load_routed_experts(&package, &of_load, layer, experts).map_err(|e| e.to_string())
    };
    Shard::new(Arc::clone(backend), hidden, Box::new(load)).expect("buffers")
}

pub fn fabric() -> TcpFabric {
    TcpFabric::new(Secret::new(b"an open secret of tests").expect("long enough"))
}

pub fn identity(package: &Package, id: u32) -> Identity {
    let fingerprint = package.checkpoint.fingerprint();
    Identity { id: WorkerId(id), fingerprint, arithmetic: "cpu int8".into() }
}

/// Starts a worker that lives as long as the process; its address.
pub fn start_worker(shard: Shard, identity: Identity) -> String {
    start_seen_worker(shard, identity).0
}

/// The same, and the worker itself.
pub fn start_seen_worker(shard: Shard, identity: Identity) -> (String, Arc<Worker>) {
    let listener = fabric().listen("127.0.0.1:0").expect("a free port");
    let address = listener.address();
    let worker = Worker::new(shard, identity);
    let seen = Arc::clone(&worker);
    std::thread::spawn(move || worker.serve(&*listener));
    (address, seen)
}

pub fn start_workers(package: &Arc<Package>, backend: &Arc<dyn Backend>, count: u32) -> Vec<String> {
    (0..count).map(|id| start_worker(shard(package, backend), identity(package, id))).collect()
}

pub fn worker_config(id: u32, address: &str) -> WorkerConfig {
    WorkerConfig { id, address: address.into(), memory_gib: None, speed: 1.0, incarnation: 0 }
}

pub fn config(addresses: &[String], redundancy: f64) -> ClusterConfig {
    ClusterConfig {
        workers: addresses.iter().zip(0..).map(|(address, id)| worker_config(id, address)).collect(),
        fabric: FabricName::Tcp,
        secret_file: PathBuf::new(),
        tls: None,
        wire: WireFormat::F32,
        overlap_rows: 0,
        placement: PlacementConfig { redundancy, ..PlacementConfig::default() },
        // Long enough that a busy machine is not taken for a dead worker.
        deadlines: Deadlines {
            step_ms: 30_000,
            connect_ms: 10_000,
            heartbeat_ms: 10_000,
            recovery_ms: 60_000,
            ..Deadlines::default()
        },
    }
}

/// The same with deadlines that find out soon what hangs.
pub fn hasty_config(addresses: &[String], redundancy: f64) -> ClusterConfig {
    let mut config = config(addresses, redundancy);
    config.deadlines = Deadlines { step_ms: 1500, connect_ms: 5000, heartbeat_ms: 500, ..config.deadlines };
    config
}

pub fn start(
    config: &ClusterConfig,
    package: &Package,
    device: &Arc<dyn Backend>,
) -> Result<Arc<ClusterExchange>, ClusterError> {
    let exchange = ClusterExchange::start(config, Box::new(fabric()), Arc::clone(device), &shape(package));
    exchange.map(Arc::new)
}

pub fn start_placed(
    config: &ClusterConfig,
    package: &Package,
    device: &Arc<dyn Backend>,
    placement: Placement,
) -> Arc<ClusterExchange> {
    let (device, shape) = (Arc::clone(device), shape(package));
    let exchange = ClusterExchange::with_placement(config, Box::new(fabric()), device, &shape, placement);
    Arc::new(exchange.expect("a cluster"))
}

/// Bits of the logits of every row of one sequence, prompt and decodes.
pub fn run(package: &Package, device: &Arc<dyn Backend>, experts: Experts) -> Vec<Vec<u32>> {
    run_with(package, device, experts, &mut |_| {}).expect("every step")
}

pub fn behind(exchange: &Arc<ClusterExchange>) -> Experts {
    Experts::Behind(Arc::clone(exchange) as Arc<dyn Exchange>)
}

/// `before` is called before each step with its number.
pub fn run_with(
    package: &Package,
    device: &Arc<dyn Backend>,
    experts: Experts,
    before: &mut dyn FnMut(usize),
) -> Result<Vec<Vec<u32>>, String> {
    let (mut model, mut kv) = load(package, device, experts);
    let (vocab, blocks) = (package.config.vocab_size, CONTEXT_MAX / BLOCK_TOKENS);
    let mut tokens: Vec<TokenId> = (0..PROMPT).map(|i| (i * 37 + 5) as TokenId % vocab as TokenId).collect();
    let (mut all, mut done) = (Vec::new(), 0);
    for (step, rows) in [PROMPT / 2, PROMPT - PROMPT / 2].into_iter().chain([1; DECODED]).enumerate() {
        before(step);
        let batch = Batch {
            tokens: tokens[done..done + rows].to_vec(),
            sequences: vec![SequenceSlice {
                rows: 0..rows,
                context: done,
                blocks: (0..blocks as u32).map(BlockId).take((done + rows).div_ceil(BLOCK_TOKENS)).collect(),
                ..SequenceSlice::default()
            }],
            logit_rows: (0..rows as u32).collect(),
        };
        let logits = model.forward(&batch, &mut kv).map_err(|e| e.to_string())?;
        let mut values = vec![0.0; rows * vocab];
        device.read(logits, &mut values).expect("logits");
        all.extend(values.chunks(vocab).map(|row| row.iter().map(|v| v.to_bits()).collect::<Vec<u32>>()));
        done += rows;
        if done == tokens.len() {
            let last = &values[(rows - 1) * vocab..];
            let best = last.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).expect("a vocabulary");
            tokens.push(best.0 as TokenId);
        }
    }
    Ok(all)
}

fn load(package: &Package, device: &Arc<dyn Backend>, experts: Experts) -> (Box<dyn lingqu_model::Model>, KvStore) {
    let options = LoadOptions {
        batch_rows_max: ROWS_MAX,
        logit_rows_max: ROWS_MAX,
        context_tokens_max: CONTEXT_MAX,
        speculate: false,
    };
    let model = load_with_experts(package, Arc::clone(device), &options, experts, &mut |_| {});
    let model = model.unwrap_or_else(|error| panic!("{error}"));
    let blocks = CONTEXT_MAX / BLOCK_TOKENS;
    let (layers, entry) = (model.layers(), model.kv_entry());
    let spec = KvSpec { layers, blocks, block_tokens: BLOCK_TOKENS, entry, precision: KvPrecision::Full };
    let kv = device.alloc_kv(&spec).expect("a cache");
    (model, kv)
}

/// Bits of the logits of steps that mix prompts and single tokens of two sequences, some of whose rows want logits.
pub fn mixed(package: &Package, device: &Arc<dyn Backend>, experts: Experts) -> Vec<Vec<u32>> {
    let (mut model, mut kv) = load(package, device, experts);
    let vocab = package.config.vocab_size;
    let mut all = Vec::new();
    let (mut done, mut blocks) = ([0, 0], [vec![BlockId(0)], vec![BlockId(1)]]);
    for (rows, logit_rows) in [
        ([5, 3], vec![7]),
        ([1, 1], vec![0, 1]),
        ([1, 6], vec![0, 2, 6]),
        ([4, 0], vec![]),
        ([0, 9], vec![0]),
        ([8, 8], (0..16).collect::<Vec<u32>>()),
    ] {
        let mut batch = Batch { logit_rows, ..Batch::default() };
        for sequence in (0..2).filter(|&s| rows[s] > 0) {
            let start = batch.tokens.len();
            let token = |i: usize| ((done[sequence] + i) * 31 + sequence * 7 + 3) as TokenId % vocab as TokenId;
            batch.tokens.extend((0..rows[sequence]).map(token));
            if done[sequence] + rows[sequence] > BLOCK_TOKENS && blocks[sequence].len() == 1 {
                blocks[sequence].push(BlockId(2 + sequence as u32));
            }
            batch.sequences.push(SequenceSlice {
                rows: start..start + rows[sequence],
                context: done[sequence],
                blocks: blocks[sequence].clone(),
                ..SequenceSlice::default()
            });
            done[sequence] += rows[sequence];
        }
        let logits = model.forward(&batch, &mut kv).expect("every step");
        let mut values = vec![0.0; batch.logit_rows.len() * vocab];
        device.read(logits, &mut values).expect("logits");
        all.extend(values.chunks(vocab).map(|row| row.iter().map(|v| v.to_bits()).collect::<Vec<u32>>()));
    }
    all
}
