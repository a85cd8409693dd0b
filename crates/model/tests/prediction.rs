//! The prediction layer: the default model's against values computed with PyTorch, and what it must leave alone.

mod support;

use std::path::Path;

use lingqu_model::{ModelError, Package};
use lingqu_types::TokenId;
use serde::Deserialize;
use support::{Runner, backends, log_softmax};

/// `scripts/golden/prediction.py`
#[derive(Deserialize)]
struct Golden {
    prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
struct Prompt {
    token_ids: Vec<TokenId>,
    /// After each token, from the state before it and the token.
    top: Vec<Vec<(TokenId, f32)>>,
    /// After the guess behind the last token, from the layer's own state.
    again: Vec<(TokenId, f32)>,
}

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn default_model() -> Package {
    Package::open(&folder().join("models/default")).expect("the default model")
}

fn golden() -> Golden {
    let file = folder().join("testdata/golden/models/default.prediction.json");
    serde_json::from_slice(&std::fs::read(file).expect("golden values")).expect("their form")
}

#[test]
fn drafts_agree_with_the_reference() {
    let (package, golden) = (default_model(), golden());
    for (name, backend) in backends() {
        let mut runner = Runner::that_predicts(&package, backend);
        let (mut sum, mut values) = (0.0, 0);
        for prompt in &golden.prompts {
            let said = runner.drafts_of(&prompt.token_ids, &[100]);
            for (row, top) in said.iter().zip(prompt.top.iter().chain([&prompt.again])) {
                let logprobs = log_softmax(row);
                for &(token, logprob) in top {
                    sum += (logprobs[token as usize] - f64::from(logprob)).abs();
                    values += 1;
                }
            }
        }
        let mean = sum / f64::from(values);
        println!("{name:<10} mean {mean:.2e} of {values} log-probabilities");
        let tolerance = if name == "reference" { 2e-3 } else { 2e-2 };
        assert!(values > 800 && mean < tolerance, "{name}: mean |difference| {mean:.2e} of {values}");
    }
}

#[test]
fn chunks_change_no_bit_of_drafts() {
    let (package, golden) = (default_model(), golden());
    let text = &golden.prompts.iter().find(|p| p.token_ids.len() > 40).expect("a long one").token_ids[..40];
    for (name, backend) in backends() {
        let mut runner = Runner::that_predicts(&package, backend);
        let whole = runner.drafts_of(text, &[40]);
        for chunks in [&[1][..], &[7, 1, 13], &[33, 2]] {
            assert!(runner.drafts_of(text, chunks) == whole, "{name}, chunks of {chunks:?}");
        }
    }
}

/// Also where the layer holds nonsense, as the tiny FP8 model's does.
#[test]
fn a_prediction_layer_changes_no_bit_of_logits() {
    let tiny = Package::open(&folder().join("testdata/golden/models/deepseek-v3-fp8")).expect("a golden model");
    for package in [default_model(), tiny] {
        let text: Vec<TokenId> = (0..70).map(|i| i * 37 % package.config.vocab_size as TokenId).collect();
        for (name, backend) in backends() {
            let without = Runner::new(&package, backend.clone()).logits_of(&text);
            let mut runner = Runner::that_predicts(&package, backend);
            assert!(runner.logits_of(&text) == without, "{} on {name}", package.config.name);
            runner.drafts_of(&text, &[9]);
            assert!(runner.logits_in_chunks(&text, &[9]) == without, "{} on {name}, with drafts", package.config.name);
            let last = runner.last_logits(&[&text, &text[..33]], &[16]);
            assert!(last == [without[69].clone(), without[32].clone()], "{} on {name}, few rows", package.config.name);
        }
    }
}

#[test]
fn a_model_without_one_says_so() {
    let package = Package::open(&folder().join("testdata/golden/models/qwen2-f32")).expect("a golden model");
    let options =
        lingqu_model::LoadOptions { batch_rows_max: 4, logit_rows_max: 4, context_tokens_max: 16, speculate: true };
    let (_, backend) = backends().remove(0);
    let error = lingqu_model::load(&package, backend, &options, &mut |_| {}).err().expect("it has no such layer");
    assert!(matches!(error, ModelError::NoPredictionLayer { .. }), "{error}");
}
