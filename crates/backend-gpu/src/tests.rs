//! The host side over a driver that fails each call in turn: clean errors, and everything is given back.

use std::sync::Arc;

use lingqu_backend::{
    AttentionSpec, Backend, BackendError, FfnSource, HostRouting, KvEntry, KvSpec, LinearSource, RopePairing,
    RouteSpec, Scoring,
};
use lingqu_tensor::{Format, HostTensor};
use lingqu_types::{Batch, BlockId, SequenceSlice};

use crate::config::{Emulation, Environment, GpuConfig};
use crate::core::Core;
use crate::driver::command::Folder;
use crate::driver::fake::{Failure, Fake};
use crate::driver::rows::Row;
use crate::{GpuBackend, Result, kernels};

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
        kernels::build(Row::Emu, "warp32", &bench.environment()).unwrap();
        bench
    }

    fn environment(&self) -> Environment {
        let cxx = Some(self.folder.path.join("cxx"));
        Environment { kernel_cache: Some(self.folder.path.join("cache")), cxx, ..Environment::default() }
    }

    fn open(&self, fake: &Arc<Fake>) -> Result<GpuBackend> {
        let config =
            GpuConfig { row: Row::Emu, device: 0, emulation: Emulation::default(), environment: self.environment() };
        Ok(GpuBackend::of(Core::with_driver(&config, fake.clone())?))
    }
}

fn matrix(rows: usize, cols: usize) -> HostTensor {
    HostTensor::encode("w", [rows, cols], Format::Q8_0, &vec![0.5; rows * cols]).unwrap()
}

/// One step that uses every call of the seam.
fn everything(backend: &dyn Backend) -> Result<()> {
    let spec = KvSpec {
        layers: 2,
        blocks: 4,
        block_tokens: 2,
        entry: KvEntry::Separate { kv_heads: 1, k_dim: 32, v_dim: 32 },
    };
    let mut kv = backend.alloc_kv(&spec)?;
    let [mut x, mut y] = [backend.alloc(4, 64)?, backend.alloc(4, 64)?];
    let mut routing = backend.alloc_routing(4, 2)?;
    let table = backend.upload_table(&HostTensor::from_f32("rope", [8, 32], &[0.5; 256]))?;
    let norm = backend.upload_table(&HostTensor::from_f32("norm", [1, 64], &[1.0; 64]))?;
    let embedding = backend.upload_embedding(&matrix(10, 64))?;
    let biases = [HostTensor::from_f32("b", [1, 64], &[0.5; 64])];
    let parts = [matrix(32, 64), matrix(32, 64)];
    let linear = backend.upload_linear(LinearSource { parts: &parts, biases: &biases })?;
    let heads = backend.upload_heads(&[matrix(32, 32), matrix(32, 32)])?;
    let source = || FfnSource { gate: matrix(32, 64), up: matrix(32, 64), down: matrix(64, 32) };
    let ffn = backend.upload_ffn(&source())?;
    let experts = backend.upload_experts(&[source(), source(), source()])?;

    let blocks = vec![BlockId(1), BlockId(3)];
    let sequences = vec![SequenceSlice { rows: 0..2, context: 1, blocks }];
    let batch = Batch { tokens: vec![7, 9], sequences, logit_rows: vec![1] };
    let step = backend.begin_step(&batch, 2)?;
    x.set_rows(2);
    y.set_rows(2);
    backend.embed(&step, &embedding, x.view_mut())?;
    backend.write(&[1.0; 64], x.view_mut().cols(0..32))?;
    backend.rms_norm(x.view(), &norm, 1e-5, y.view_mut())?;
    backend.linear(y.view(), &linear, x.view_mut())?;
    backend.linear_heads(x.view().split_heads(2), &heads, y.view_mut().split_heads(2))?;
    backend.rope(&step, y.view().split_heads(2), &table, RopePairing::Half, x.view_mut().split_heads(2))?;
    backend.kv_append(&step, &mut kv, 1, x.view().cols(0..32), Some(x.view().cols(32..64)))?;
    let spec = AttentionSpec { layer: 1, scale: 0.1 };
    backend.attention(&step, x.view().split_heads(2), &kv, spec, y.view_mut().split_heads(2))?;
    backend.kv_copy(&mut kv, &[(BlockId(1), BlockId(2))])?;
    backend.ffn(y.view(), &ffn, x.view_mut())?;
    backend.write_routing(&HostRouting { top_k: 2, experts: vec![0, 1, 2, 0], weights: vec![0.5; 4] }, &mut routing)?;
    let route =
        RouteSpec { experts: 64, top_k: 2, scoring: Scoring::Sigmoid, groups: None, normalise: true, scale: 1.0 };
    backend.route(x.view(), Some(&norm), &route, &mut routing)?;
    backend.experts(x.view(), &routing, &experts, y.view_mut())?;
    let mut slots = backend.alloc(4, 64)?;
    slots.set_rows(4);
    backend.combine(slots.view(), &routing, y.view_mut())?;
    backend.add(x.view(), y.view_mut())?;
    let mut logits = backend.alloc(1, 64)?;
    logits.set_rows(1);
    backend.gather_logit_rows(&step, y.view(), logits.view_mut())?;
    drop(step);
    backend.begin_step(&batch, 2)?;
    backend.read_routing(&routing)?;
    backend.read(y.view().cols(3..7), &mut [0.0; 8])?;
    backend.read(logits.view(), &mut [0.0; 64])
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
    assert_eq!(state.alive(), [0; 4]);
    let calls = |name: &str| state.calls.iter().filter(|call| **call == name).count();
    assert!(calls("launch") > 20 && calls("alloc") > 20, "{:?}", state.calls);
    assert_eq!(calls("alloc"), calls("free"));
    assert!(calls("wait") > 0 && calls("module_unload") == 1 && calls("stream_destroy") == 1);
}

#[test]
fn each_call_may_fail_and_nothing_leaks() {
    let (bench, fake) = (Bench::new(), Arc::new(Fake::default()));
    run(&bench, &fake).unwrap();
    let calls = fake.state().calls.clone();
    for failure in [Failure::OutOfMemory, Failure::Lost] {
        for (number, call) in calls.iter().enumerate() {
            let fake = Arc::new(Fake::default());
            fake.state().fails = Some((number, failure));
            let outcome = run(&bench, &fake);
            assert_eq!(fake.state().alive(), [0; 4], "{failure:?} of call {number}, {call}: something leaks");
            let gives_back = ["free", "release", "stream_destroy", "module_unload"].contains(call);
            match outcome {
                Ok(()) => assert!(gives_back || number + 20 > calls.len() || *call == "wait", "{number}, {call}"),
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
    assert!(backend.alloc_kv(&KvSpec { layers: 1, blocks: 1, block_tokens: 1, entry }).is_err());
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
