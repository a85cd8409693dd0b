//! The host side over a driver that fails each call in turn: clean errors, and everything is given back.

use std::sync::Arc;

use lingqu_backend::{
    AttentionSpec, Backend, BackendError, Buffer, ExpertWeights, FfnSource, FfnWeights, HostRouting, KvEntry,
    KvPrecision, KvSpec, KvStore, LinearSource, RopePairing, RouteSpec, Routing, Scoring, Weight,
};
use lingqu_tensor::{Format, HostTensor};
use lingqu_types::{Batch, BlockId, SequenceSlice};

use crate::config::{Emulation, Environment, GpuConfig, Graphs, MatrixUnits};
use crate::core::Core;
use crate::driver::command::Folder;
use crate::driver::fake::{Failure, Fake};
use crate::driver::rows::Row;
use crate::kernels::{self, Target};
use crate::{GpuBackend, Result};

/// A kernel cache that holds an image, so that no compiler is asked for: the fake driver loads anything.
struct Bench {
    folder: Folder,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { folder: Folder::new().unwrap() };
        // A compiler that writes something to its last argument.
        let script = "#!/bin/sh\nfor last; do :; done\ntest \"$last\" = --version || echo image > \"$last\"\n";
        bench.folder.write("cxx", script.as_bytes()).unwrap();
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(bench.folder.path.join("cxx"), executable).unwrap();
        let target = Target::new(Row::Emu, "warp32", MatrixUnits::default());
        kernels::build(target, &bench.environment()).unwrap();
        bench
    }

    fn environment(&self) -> Environment {
        let cxx = Some(self.folder.path.join("cxx"));
        Environment { kernel_cache: Some(self.folder.path.join("cache")), cxx, ..Environment::default() }
    }

    fn open(&self, fake: &Arc<Fake>) -> Result<GpuBackend> {
        self.open_with(fake, Graphs::Made)
    }

    fn open_with(&self, fake: &Arc<Fake>, graphs: Graphs) -> Result<GpuBackend> {
        let (emulation, environment) = (Emulation::default(), self.environment());
        let config = GpuConfig { emulation, environment, graphs, ..GpuConfig::of(Row::Emu) };
        Ok(GpuBackend::of(Core::with_driver(&config, fake.clone())?))
    }
}

fn matrix(rows: usize, cols: usize) -> HostTensor {
    HostTensor::encode("w", [rows, cols], Format::Q8_0, &vec![0.5; rows * cols]).unwrap()
}

/// All that a step needs.
struct Rig<'a> {
    backend: &'a dyn Backend,
    kv: KvStore,
    x: Buffer,
    y: Buffer,
    slots: Buffer,
    logits: Buffer,
    routing: Routing,
    table: Weight,
    norm: Weight,
    embedding: Weight,
    linear: Weight,
    heads: Weight,
    ffn: FfnWeights,
    experts: ExpertWeights,
}

impl<'a> Rig<'a> {
    fn new(backend: &'a dyn Backend) -> Result<Self> {
        let entry = KvEntry::Separate { kv_heads: 1, k_dim: 32, v_dim: 32 };
        let source = || FfnSource { gate: matrix(32, 64), up: matrix(32, 64), down: matrix(64, 32) };
        let biases = [HostTensor::from_f32("b", [1, 64], &[0.5; 64])];
        let parts = [matrix(32, 64), matrix(32, 64)];
        let buffer = |rows| {
            let mut buffer = backend.alloc(4, 64)?;
            buffer.set_rows(rows);
            Ok::<_, BackendError>(buffer)
        };
        Ok(Self {
            backend,
            kv: backend.alloc_kv(&KvSpec {
                layers: 2,
                blocks: 4,
                block_tokens: 2,
                entry,
                precision: KvPrecision::Full,
            })?,
            x: buffer(2)?,
            y: buffer(2)?,
            slots: buffer(4)?,
            logits: buffer(1)?,
            routing: backend.alloc_routing(4, 2)?,
            table: backend.upload_table(&HostTensor::from_f32("rope", [8, 32], &[0.5; 256]))?,
            norm: backend.upload_table(&HostTensor::from_f32("norm", [1, 64], &[1.0; 64]))?,
            embedding: backend.upload_embedding(&matrix(10, 64))?,
            linear: backend.upload_linear(LinearSource { parts: &parts, biases: &biases })?,
            heads: backend.upload_heads(&[matrix(32, 32), matrix(32, 32)])?,
            ffn: backend.upload_ffn(&source())?,
            experts: backend.upload_experts(&[source(), source(), source()])?,
        })
    }

    /// Every op of the seam once.
    fn step(&mut self, token: u32) -> Result<()> {
        let Self { backend, kv, x, y, slots, logits, routing, .. } = self;
        let blocks = vec![BlockId(1), BlockId(3)];
        let sequences = vec![SequenceSlice { rows: 0..2, context: 1, blocks, adapter: None }];
        let batch = Batch { tokens: vec![token, 9], sequences, logit_rows: vec![1] };
        let step = backend.begin_step(&batch, 2)?;
        backend.embed(&step, &self.embedding, x.view_mut())?;
        backend.write(&[1.0; 64], x.view_mut().cols(0..32))?;
        backend.rms_norm(x.view(), &self.norm, 1e-5, y.view_mut())?;
        backend.linear(y.view(), &self.linear, x.view_mut())?;
        backend.linear_heads(x.view().split_heads(2), &self.heads, y.view_mut().split_heads(2))?;
        let rotated = x.view_mut().split_heads(2);
        backend.rope(&step, y.view().split_heads(2), &self.table, RopePairing::Half, rotated)?;
        backend.kv_append(&step, kv, 1, x.view().cols(0..32), Some(x.view().cols(32..64)))?;
        let spec = AttentionSpec { layer: 1, scale: 0.1 };
        backend.attention(&step, x.view().split_heads(2), kv, spec, y.view_mut().split_heads(2))?;
        backend.kv_copy(kv, &[(BlockId(1), BlockId(2))])?;
        backend.ffn(y.view(), &self.ffn, x.view_mut())?;
        let chosen = HostRouting { top_k: 2, experts: vec![0, 1, 2, 0], weights: vec![0.5; 4] };
        backend.write_routing(&chosen, routing)?;
        let route =
            RouteSpec { experts: 64, top_k: 2, scoring: Scoring::Sigmoid, groups: None, normalise: true, scale: 1.0 };
        backend.route(x.view(), Some(&self.norm), &route, routing)?;
        backend.experts(x.view(), routing, &self.experts, y.view_mut())?;
        backend.combine(slots.view(), routing, y.view_mut())?;
        backend.add(x.view(), y.view_mut())?;
        backend.gather_logit_rows(&step, y.view(), logits.view_mut())?;
        backend.read_routing(routing)?;
        backend.read(y.view().cols(3..7), &mut [0.0; 8])?;
        backend.top_logits(logits.view(), &[1.0], 3)?;
        backend.read_rows(y.view(), 1..2, &mut [0.0; 64])?;
        backend.read(logits.view(), &mut [0.0; 64])
    }
}

/// Steps enough for memory to grow, to see a list of launches, to make a graph of it, and to use it again.
const STEPS: u32 = 4;

fn everything(backend: &dyn Backend) -> Result<()> {
    let mut rig = Rig::new(backend)?;
    (0..STEPS).try_for_each(|token| rig.step(token))
}

/// Opens the backend, uses it, and drops it all.
fn run(bench: &Bench, fake: &Arc<Fake>) -> Result<()> {
    let backend = bench.open(fake)?;
    everything(&backend)
}

#[test]
fn nothing_is_left_after_use() {
    let (bench, fake) = (Bench::new(), Arc::new(Fake::default()));
    run(&bench, &fake).unwrap();
    let state = fake.state();
    assert_eq!(state.alive(), [0; 5]);
    let calls = |name: &str| state.calls.iter().filter(|call| **call == name).count();
    assert!(calls("launch") > 20 && calls("alloc") > 20, "{:?}", state.calls);
    assert_eq!(calls("alloc"), calls("free"));
    assert!(calls("graph_create") > 0 && calls("graph_create") == calls("graph_destroy"));
    assert!(calls("graph_launch") >= 2 * calls("graph_create"), "made once, used again");
    assert!(calls("wait") > 0 && calls("module_unload") == 1 && calls("stream_destroy") == 1);
}

#[test]
fn each_call_may_fail_and_nothing_leaks() {
    let (bench, fake) = (Bench::new(), Arc::new(Fake::default()));
    run(&bench, &fake).unwrap();
    let calls = fake.state().calls.clone();
    for failure in [Failure::OutOfMemory, Failure::Lost] {
        for (number, call) in calls.iter().enumerate() {
            let in_the_end = calls[number..].iter().all(|call| *call != "copy_out");
            let fake = Arc::new(Fake::default());
            fake.state().fails = Some((number, failure));
            let outcome = run(&bench, &fake);
            assert_eq!(fake.state().alive(), [0; 5], "{failure:?} of call {number}, {call}: something leaks");
            // What a failure once leaves without effect.
            let is_spared = ["free", "graph_create", "graph_launch", "graph_destroy", "wait"].contains(call);
            match outcome {
                Ok(()) => assert!(is_spared && failure == Failure::OutOfMemory || in_the_end, "{number}, {call}"),
                Err(BackendError::OutOfMemory { bytes, what }) => {
                    assert!(failure == Failure::OutOfMemory && bytes == 77 && !what.is_empty(), "{number}, {call}");
                }
                Err(BackendError::Device { problem, .. }) => {
                    assert!(failure == Failure::Lost && problem.contains("the device is lost"), "{call}: {problem}");
                }
                Err(other) => panic!("{number}, {call}: {other}"),
            }
        }
    }
}

#[test]
fn too_much_is_out_of_memory_before_the_driver_is_asked() {
    let (bench, fake) = (Bench::new(), Arc::new(Fake::default()));
    let backend = bench.open(&fake).unwrap();
    let before = fake.state().calls.len();
    for refused in [backend.alloc(1 << 20, 1 << 20).err(), backend.alloc(usize::MAX, 3).err()] {
        assert!(matches!(refused, Some(BackendError::OutOfMemory { .. })), "{refused:?}");
    }
    assert!(backend.alloc_routing(usize::MAX, 2).is_err());
    let entry = KvEntry::Separate { kv_heads: usize::MAX, k_dim: usize::MAX, v_dim: 2 };
    assert!(
        backend
            .alloc_kv(&KvSpec { layers: 1, blocks: 1, block_tokens: 1, entry, precision: KvPrecision::Full })
            .is_err()
    );
    assert_eq!(fake.state().calls.len(), before);
}

#[test]
fn what_the_kernels_cannot_count_is_unsupported() {
    let (bench, fake) = (Bench::new(), Arc::new(Fake::default()));
    let backend = bench.open(&fake).unwrap();
    let one = || HostTensor::from_f32("w", [1, 1], &[1.0]);
    let experts = vec![FfnSource { gate: one(), up: one(), down: one() }; 1025];
    let error = backend.upload_experts(&experts).err();
    assert!(matches!(error, Some(BackendError::Unsupported { .. })), "{error:?}");
}

#[test]
fn graphs_start_the_same_kernels() {
    let bench = Bench::new();
    let [plain, graphs] = [Graphs::Off, Graphs::Made].map(|how| {
        let fake = Arc::new(Fake::default());
        everything(&bench.open_with(&fake, how).unwrap()).unwrap();
        let state = fake.state();
        (state.launches, state.calls.iter().filter(|call| **call == "launch").count())
    });
    assert_eq!(plain.0, plain.1);
    assert_eq!(plain.0, graphs.0);
    assert!(graphs.1 < plain.1 * 3 / 5, "{graphs:?} of {plain:?} one by one");
}

/// The first time they go out one by one, then as a graph; when a graph fails, one by one again and for good.
#[test]
fn a_driver_whose_graphs_fail_goes_without() {
    let (bench, fake) = (Bench::new(), Arc::new(Fake::default()));
    let backend = bench.open(&fake).unwrap();
    let mut rig = Rig::new(&backend).unwrap();
    let mut step = |fails: Option<&'static str>| {
        let before = fake.state().calls.len();
        fake.state().fails_named = fails;
        rig.step(1).unwrap();
        let state = fake.state();
        let count = |name: &str| state.calls[before..].iter().filter(|call| **call == name).count();
        (count("launch"), count("graph_create"), count("graph_launch"))
    };
    let (all, ..) = step(None);
    let (some, made, launched) = step(None);
    assert!(some < all && made > 0 && launched == made);
    let (_, made, launched) = step(Some("graph_launch"));
    assert_eq!((made, launched), (0, 1));
    assert_eq!(fake.state().graphs.len(), 0);
    assert_eq!(step(None), (all, 0, 0));
}
