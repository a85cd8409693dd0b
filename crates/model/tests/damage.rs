//! Files that are not what they say: a clear error that names the file, field or tensor, and no panic.

use std::path::Path;
use std::sync::Arc;

use lingqu_backend_reference::ReferenceBackend;
use lingqu_model::{LoadOptions, ModelError, Package, load};

/// The files of a golden model, to be damaged.
struct Files {
    config: String,
    weights: Vec<u8>,
}

fn golden(name: &str) -> Files {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/golden/models").join(name);
    let read = |file: &str| std::fs::read(folder.join(file)).expect(file);
    Files { config: String::from_utf8(read("config.json")).unwrap(), weights: read("model.safetensors") }
}

impl Files {
    fn config(mut self, from: &str, to: &str) -> Self {
        assert!(self.config.contains(from), "{from}");
        self.config = self.config.replacen(from, to, 1);
        self
    }

    /// Replaces the first `from` in the weights' header by `to`, of the same length.
    fn header(mut self, from: &str, to: &str) -> Self {
        assert_eq!(from.len(), to.len());
        let at = self.weights.windows(from.len()).position(|w| w == from.as_bytes()).expect(from);
        self.weights[at..at + to.len()].copy_from_slice(to.as_bytes());
        self
    }

    /// Makes the last two bytes of the data a bf16 NaN.
    fn nan(mut self) -> Self {
        let at = self.weights.len() - 2;
        self.weights[at..].copy_from_slice(&[0xc0, 0x7f]);
        self
    }

    fn load(self) -> Result<(), ModelError> {
        let (config, weights) = (self.config.into_bytes().leak(), self.weights.leak());
        let package = Package::embedded(&[("config.json", config), ("model.safetensors", weights)])?;
        let options = LoadOptions { batch_rows_max: 4, logit_rows_max: 4, context_tokens_max: 16, speculate: false };
        load(&package, Arc::new(ReferenceBackend::new()), &options, &mut |_| ()).map(|_| ())
    }
}

#[test]
fn damage_is_named() {
    let check = |files: Files, says: &str| {
        let error = files.load().expect_err(says).to_string();
        assert!(error.contains(says), "{error:?} lacks {says:?}");
    };
    let v2 = || golden("deepseek-v2-lite-bf16");
    assert!(v2().load().is_ok());
    check(v2().config("\"hidden_size\": 96", "\"hidden_size\": 97"), "but the configuration asks for");
    check(v2().config("\"vocab_size\": 384", "\"vocab_size\": 385"), "'model.embed_tokens.weight' has shape [384, 96]");
    check(v2().config("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 16777216"), "model.layers.3.");
    check(v2().config("\"n_routed_experts\": 12", "\"n_routed_experts\": 13"), "mlp.gate.weight' has shape [12, 96]");
    check(v2().config("\"kv_lora_rank\": 48", "\"kv_lora_rank\": 0"), "config.json: kv_lora_rank: is 0");
    check(v2().config("\"num_attention_heads\": 4", "\"num_attention_heads\": 16777216"), "q_proj.weight' has shape");
    check(v2().config("{", "["), "config.json");
    check(
        v2().header("layers.1.self_attn.o_proj", "layers.9.self_attn.o_proj"),
        "layers.1.self_attn.o_proj.weight' is",
    );
    check(v2().header("experts.7.up_proj", "experts.x.up_proj"), "experts.7.up_proj.weight' is missing");
    check(v2().nan(), "is NaN or infinite");
}
