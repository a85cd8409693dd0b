//! The architectures that can be run: one row each.

use lingqu_backend::RopePairing;

use crate::arch::{deepseek, llama, qwen2};
use crate::config::fields::Fields;
use crate::config::gguf::{self, TensorFacts};
use crate::config::hugging_face::{self, ConfigJson};
use crate::loader::Loader;
use crate::{Experts, Model, ModelConfig, ModelError};

/// How an architecture is recognised, read and built.
pub(crate) struct Architecture {
    /// Its name here and in messages.
    pub name: &'static str,
    /// In `config.json`: an entry of `architectures`, or `model_type`.
    pub hugging_face: &'static [&'static str],
    /// In GGUF: `general.architecture`.
    pub gguf: &'static str,
    /// From `config.json` and the model's name.
    pub read_json: fn(&ConfigJson, &str) -> Result<ModelConfig, ModelError>,
    /// From the keys `ARCHITECTURE.*`, the model's name, and what the tensors tell.
    pub read_gguf: fn(&Fields, &str, &TensorFacts) -> Result<ModelConfig, ModelError>,
    pub load: Load,
}

/// Uploads the weights.
type Load = fn(&mut Loader, Experts) -> Result<Box<dyn Model>, ModelError>;

const ARCHITECTURES: [Architecture; 3] = [
    Architecture {
        name: "deepseek",
        hugging_face: &["DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "deepseek_v2", "deepseek_v3"],
        gguf: "deepseek2",
        read_json: hugging_face::deepseek,
        read_gguf: gguf::deepseek,
        load: deepseek::load,
    },
    Architecture {
        name: "qwen2",
        hugging_face: &["Qwen2ForCausalLM", "qwen2"],
        gguf: "qwen2",
        read_json: |json, name| hugging_face::gqa(json, name, "qwen2", true),
        read_gguf: |fields, name, facts| gguf::gqa(fields, name, facts, "qwen2", RopePairing::Half),
        load: qwen2::load,
    },
    Architecture {
        name: "llama",
        hugging_face: &["LlamaForCausalLM", "llama"],
        gguf: "llama",
        read_json: |json, name| hugging_face::gqa(json, name, "llama", false),
        read_gguf: |fields, name, facts| gguf::gqa(fields, name, facts, "llama", RopePairing::Interleaved),
        load: llama::load,
    },
];

/// The row of `config.json`'s architecture: the first of `names` that is known.
pub(crate) fn by_json(file: &str, names: &[&str]) -> Result<&'static Architecture, ModelError> {
    let known = |name: &&str| ARCHITECTURES.iter().find(|a| a.hugging_face.contains(name));
    names.iter().find_map(known).ok_or_else(|| {
        let known = ARCHITECTURES.iter().flat_map(|a| a.hugging_face).filter(|name| name.ends_with("ForCausalLM"));
        let known: Vec<&str> = known.copied().collect();
        let found = names.first().map_or("(none named)", |name| *name);
        ModelError::UnknownArchitecture { file: file.into(), found: shown(found), known: known.join(", ") }
    })
}

/// The row of GGUF's `general.architecture`.
pub(crate) fn by_gguf(file: &str, name: &str) -> Result<&'static Architecture, ModelError> {
    ARCHITECTURES.iter().find(|a| a.gguf == name).ok_or_else(|| {
        let known: Vec<&str> = ARCHITECTURES.iter().map(|a| a.gguf).collect();
        ModelError::UnknownArchitecture { file: file.into(), found: shown(name), known: known.join(", ") }
    })
}

/// The row of a configuration that was read here.
pub(crate) fn by_name(name: &str) -> &'static Architecture {
    ARCHITECTURES.iter().find(|a| a.name == name).expect("configurations come from this table")
}

/// A name out of a file, fit for a line of a terminal.
fn shown(name: &str) -> String {
    format!("'{}'", name.chars().take(80).flat_map(char::escape_debug).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_architectures_are_answered_with_the_known() {
        let check = |error: ModelError, says: &str| assert_eq!(error.to_string(), says);
        let Err(error) = by_json("config.json", &["MambaForCausalLM", "mamba"]) else { panic!("mamba is not known") };
        let known = "DeepseekV2ForCausalLM, DeepseekV3ForCausalLM, Qwen2ForCausalLM, LlamaForCausalLM";
        check(error, &format!("config.json: architecture 'MambaForCausalLM' is not supported (supported: {known})"));
        let Err(error) = by_gguf("a.gguf", "gemma\n") else { panic!("gemma is not known") };
        check(error, "a.gguf: architecture 'gemma\\n' is not supported (supported: deepseek2, qwen2, llama)");
        let Ok(row) = by_json("config.json", &["deepseek_v3"]) else { panic!("its type is known") };
        assert_eq!(row.name, "deepseek");
    }
}
