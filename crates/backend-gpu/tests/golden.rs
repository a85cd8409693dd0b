//! The golden models on the emulator: every architecture and format through the kernels, at both warps.

#[path = "../../model/tests/support/mod.rs"]
mod support;

use std::sync::Arc;

use lingqu_backend::Backend;
use lingqu_backend_gpu::{Emulation, Environment, GpuBackend, GpuConfig, Graphs, Row, Schedule};
use support::{GoldenModel, Runner, golden_models};

/// As the cpu backend's: it rounds the cache to f16, as this one does.
const TOLERANCE: f64 = 2e-2;

fn emulator(warp: usize, schedule: Schedule) -> Option<Arc<dyn Backend>> {
    emulator_with(warp, schedule, Graphs::Made)
}

fn emulator_with(warp: usize, schedule: Schedule, graphs: Graphs) -> Option<Arc<dyn Backend>> {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels");
    let environment = Environment { kernel_cache: Some(folder), ..Environment::read() };
    let emulation = Emulation { warp, schedule, ..Emulation::default() };
    match GpuBackend::new(&GpuConfig { emulation, environment, graphs, ..GpuConfig::of(Row::Emu) }) {
        Ok(backend) => Some(Arc::new(backend)),
        Err(error) if error.to_string().contains("can be opened") => {
            println!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Models small enough to be emulated.
fn models() -> impl Iterator<Item = GoldenModel> {
    golden_models().into_iter().filter(|model| !["default", "smollm2"].contains(&model.name.as_str()))
}

#[test]
fn logprobs_agree_with_hugging_face() {
    let Some(backend) = emulator(32, Schedule::Forward) else { return };
    for model in models() {
        let report = Runner::new(&model.package(), backend.clone()).compare(&model);
        println!("{:<28} {report}", model.name);
        assert!(report.mean <= TOLERANCE, "{}: {report}", model.name);
    }
}

/// At the other warp and in another schedule, for each architecture.
#[test]
fn logprobs_agree_at_warp_64() {
    let Some(backend) = emulator(64, Schedule::Shuffled(5)) else { return };
    for model in models().filter(GoldenModel::covers_something_new) {
        let report = Runner::new(&model.package(), backend.clone()).compare(&model);
        println!("{:<28} {report}", model.name);
        assert!(report.mean <= TOLERANCE, "{}: {report}", model.name);
    }
}

/// In odd chunks, in other schedules, and token by token, which makes graphs of launches: the same bits.
#[test]
fn neither_chunks_nor_schedules_nor_graphs_change_a_bit() {
    let Some(backend) = emulator_with(32, Schedule::Forward, Graphs::Off) else { return };
    let Some(reversed) = emulator(32, Schedule::Reverse) else { return };
    for model in models().filter(GoldenModel::covers_something_new) {
        let Some(prompt) = model.golden.prompts.first() else { continue };
        let tokens = &prompt.token_ids[..prompt.token_ids.len().min(24)];
        let at_once = Runner::new(&model.package(), backend.clone()).logits_of(tokens);
        let in_chunks = Runner::new(&model.package(), reversed.clone()).logits_in_chunks(tokens, &[5, 1, 7]);
        assert!(at_once == in_chunks, "{}", model.name);
        let few = tokens.len().min(8);
        let one_by_one = Runner::new(&model.package(), reversed.clone()).logits_in_chunks(&tokens[..few], &[1]);
        assert!(at_once[..few] == one_by_one, "{}", model.name);
    }
}

/// All models, on a real device: `LINGQU_TEST_DEVICE=cuda`.
#[test]
fn logprobs_agree_on_the_device_asked_for() {
    let Ok(asked) = std::env::var("LINGQU_TEST_DEVICE") else {
        return println!("skipped: no LINGQU_TEST_DEVICE (cuda or dcu)");
    };
    let row = Row::ALL.into_iter().find(|row| row.name() == asked).expect("LINGQU_TEST_DEVICE is cuda, dcu or emu");
    let backend: Arc<dyn Backend> = Arc::new(GpuBackend::new(&GpuConfig::of(row)).expect("the device asked for"));
    let all = golden_models().into_iter();
    for model in all.filter(|model| row != Row::Emu || models().any(|small| small.name == model.name)) {
        let report = Runner::new(&model.package(), backend.clone()).compare(&model);
        println!("{:<28} {report}", model.name);
        assert!(report.mean <= TOLERANCE, "{}: {report}", model.name);
    }
}
