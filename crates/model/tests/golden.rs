//! Every committed model against Hugging Face's log-probabilities, and against itself under other cuts of its batches.

mod support;

use std::sync::Arc;

use lingqu_backend::Backend;
use lingqu_backend_cpu::{CpuBackend, CpuConfig};
use lingqu_model::Experts;
use support::{GoldenModel, Runner, backends, golden_models, smollm2};

/// Mean absolute difference of log-probabilities that a backend may have; also the margin between the likeliest token
/// and the next from which on they may not change places. Every format is decoded exactly; the CPU backend here rounds
/// activations to 16 bits where weights are blocks, and its KV cache to f16.
fn tolerance(backend: &str) -> f64 {
    if backend == "reference" { 2e-3 } else { 2e-2 }
}

#[test]
fn logprobs_agree_with_hugging_face() {
    let mut failures = Vec::new();
    for model in golden_models() {
        for (name, backend) in backends() {
            let mut runner = Runner::new(&model.package(), backend);
            let report = runner.compare(&model);
            println!("{:<28} {name:<10} {report}", model.name);
            if report.mean > tolerance(name) {
                failures.push(format!("{} on {name}: mean |difference| {:.2e}", model.name, report.mean));
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// The cpu backend as it is by default: activations rounded to int8 where weights are blocks.
#[test]
fn int8_activations_stay_close() {
    // Measured: 0.9e-2 with a scale for each 32 activations, 1.6e-2 to 2.2e-2 with one for each 256.
    const MEAN_MAX: f64 = 3e-2;
    // 9.1e-2, of a real model with 30 layers; what that means for its text is in benches/ACCURACY.md.
    const REAL_MEAN_MAX: f64 = 1.5e-1;
    let backend: Arc<dyn Backend> = Arc::new(CpuBackend::new(CpuConfig::default()).expect("a CPU"));
    let mut failures = Vec::new();
    for model in golden_models() {
        let report = Runner::new(&model.package(), backend.clone()).compare(&model);
        println!("{:<28} cpu, int8  {report}", model.name);
        let mean_max = if model.name == "smollm2" { REAL_MEAN_MAX } else { MEAN_MAX };
        if report.mean > mean_max {
            failures.push(format!("{}: mean |difference| {:.2e}", model.name, report.mean));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn greedy_tokens_agree_where_the_margin_decides() {
    let mut failures = Vec::new();
    for model in golden_models() {
        for (name, backend) in backends() {
            let mut runner = Runner::new(&model.package(), backend);
            for (i, case) in model.golden.greedy.iter().enumerate() {
                // Each step is asked with the reference's own continuation before it, so that one near-tie does not
                // put all later steps on another text.
                let text: Vec<u32> = case.prompt.iter().chain(&case.continuation).copied().collect();
                let logits = runner.logits_of(&text);
                let slack = tolerance(name);
                for (step, (&token, &margin)) in case.continuation.iter().zip(&case.margins).enumerate() {
                    let found = support::argmax(&logits[case.prompt.len() - 1 + step]);
                    if found != token && f64::from(margin) > slack {
                        failures.push(format!(
                            "{} on {name}: text {i}, step {step}: {found} instead of {token}, margin {margin}",
                            model.name
                        ));
                    }
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// One by one, in odd chunks, at once: the same bits.
#[test]
fn chunking_changes_no_bit() {
    for model in golden_models().into_iter().filter(GoldenModel::covers_something_new) {
        let prompts = model.golden.prompts.iter().map(|p| &p.token_ids[..p.token_ids.len().min(48)]);
        let text = prompts.max_by_key(|text| text.len()).expect("a prompt");
        for (name, backend) in backends() {
            let mut runner = Runner::new(&model.package(), backend);
            let whole = runner.logits_in_chunks(text, &[text.len()]);
            for chunks in [&[1][..], &[7, 1, 13], &[33, 2]] {
                let parts = runner.logits_in_chunks(text, chunks);
                let differs = (0..text.len()).find(|&t| parts[t] != whole[t]);
                assert_eq!(differs, None, "{} on {name}: position in chunks of {chunks:?}", model.name);
            }
        }
    }
}

/// Sequences side by side, prefill and decode mixed, only some logits asked for: the bits of each alone.
#[test]
fn company_changes_no_bit() {
    for model in golden_models().into_iter().filter(GoldenModel::covers_something_new) {
        let texts: Vec<&[u32]> =
            model.golden.prompts.iter().map(|p| &p.token_ids[..p.token_ids.len().min(40)]).collect();
        for (name, backend) in backends() {
            let mut runner = Runner::new(&model.package(), backend);
            let alone: Vec<Vec<f32>> = texts.iter().map(|text| runner.last_logits(&[text], &[1]).remove(0)).collect();
            let together = runner.last_logits(&texts, &[5, 1, 11, 3]);
            for (i, (found, expected)) in together.iter().zip(&alone).enumerate() {
                assert!(found == expected, "{} on {name}: sequence {i} of {}", model.name, texts.len());
            }
        }
    }
}

/// Routed experts on a second backend: the bits of one where both are the same, close to the reference where they
/// differ.
#[test]
fn experts_elsewhere_change_no_bit() {
    let mixtures = golden_models().into_iter().filter(|m| m.name.starts_with("deepseek") && m.covers_something_new());
    let mut checked = 0;
    for model in mixtures {
        let package = model.package();
        if package.config.moe.is_none() {
            continue;
        }
        checked += 1;
        let text = &model.golden.prompts.iter().find(|p| p.token_ids.len() > 8).expect("a prompt").token_ids;
        let [(_, reference), (_, cpu)] = <[_; 2]>::try_from(backends()).ok().expect("two backends");
        let whole = Runner::new(&package, cpu.clone()).logits_of(text);
        let mut apart = Runner::with_experts(&package, cpu.clone(), Experts::On(backends().pop().expect("cpu").1));
        assert!(apart.logits_of(text) == whole, "{}: the same backend twice", model.name);
        assert!(apart.logits_in_chunks(text, &[3, 1]) == whole, "{}: in chunks", model.name);
        let mut mixed = Runner::with_experts(&package, reference, Experts::On(cpu));
        let report = mixed.compare(&model);
        assert!(report.mean < tolerance("cpu"), "{}: {report}", model.name);
    }
    assert!(checked > 3, "{checked} mixtures");
}

/// A real model, where `scripts/fetch_smollm2.sh` has been run.
#[test]
fn smollm2_says_paris() {
    let Some(package) = smollm2() else {
        println!("skipped: no .cache/smollm2 (scripts/fetch_smollm2.sh fetches it)");
        return;
    };
    let tokenizer = package.tokenizer.as_ref().expect("it has a tokenizer");
    let ids = tokenizer.encode("The capital of France is", Default::default()).unwrap();
    let (_, backend) = backends().pop().expect("a backend");
    let mut runner = Runner::new(&package, backend);
    let next = support::argmax(runner.logits_of(&ids).last().unwrap());
    assert_eq!(tokenizer.decode(&[next], true), " Paris");
}
