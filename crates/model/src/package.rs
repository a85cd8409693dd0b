//! A model as people have it: a folder or file with weights, configuration, tokenizer and sampling defaults.

use std::path::Path;
use std::sync::Arc;

use lingqu_checkpoint::{Checkpoint, GgufMetadata, GgufValue};
use lingqu_tensor::Bytes;
use lingqu_tokenizer::{GgufVocabulary, HuggingFaceFiles, Tokenizer, TokenizerError};
use lingqu_types::TokenId;
use serde_json::{Map, Value};

use crate::config::fields::{Fields, Scalar};
use crate::config::gguf::TensorFacts;
use crate::config::hugging_face::{ConfigJson, token_ids};
use crate::names::{Naming, Role};
use crate::{ModelConfig, ModelError, registry};

const CONFIG: &str = "config.json";
const GENERATION: &str = "generation_config.json";

/// An opened model: headers are read and checked, weights are not.
#[derive(Debug)]
pub struct Package {
    pub checkpoint: Arc<Checkpoint>,
    pub config: ModelConfig,
    /// `None`: there is none, or one of a kind that is not read; see `tokenizer_missing`.
    pub tokenizer: Option<Tokenizer>,
    /// Why there is no tokenizer. Token ids work all the same.
    pub tokenizer_missing: Option<String>,
    pub generation: GenerationDefaults,
}

/// How the model's makers would have it sampled. `None`: they do not say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// 0 where the file says `do_sample: false`.
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<u32>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
    /// The tokens that end a generation, each once.
    pub eos_token_ids: Vec<TokenId>,
}

impl Package {
    /// Opens a Hugging Face folder, a folder with one GGUF model, or a `.gguf` file.
    ///
    /// # Errors
    /// Name the file, and the field or tensor, that is missing, wrong or not supported.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let checkpoint = Checkpoint::open(path)?;
        let path = path.canonicalize().unwrap_or_else(|_| path.into());
        let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
        let name = name.map_or("model".into(), |name| name.to_string_lossy().into_owned());
        Self::from_checkpoint(checkpoint, &name)
    }

    /// The same from files embedded in the binary, `(name, bytes)`.
    pub fn embedded(files: &[(&str, &'static [u8])]) -> Result<Self, ModelError> {
        Self::from_checkpoint(Checkpoint::embedded(files)?, "embedded")
    }

    fn from_checkpoint(checkpoint: Checkpoint, name: &str) -> Result<Self, ModelError> {
        let parts = match checkpoint.gguf() {
            Some(metadata) => gguf_parts(&checkpoint, metadata, name)?,
            None => hugging_face_parts(&checkpoint, name)?,
        };
        let (tokenizer, tokenizer_missing) = match parts.tokenizer {
            Some(Ok(tokenizer)) => (Some(tokenizer), None),
            // One that is right but of a kind that is not read: token ids still work.
            Some(Err(error @ TokenizerError::Unsupported { .. })) => (None, Some(error.to_string())),
            Some(Err(error)) => return Err(error.into()),
            None => (None, Some(format!("{} holds no tokenizer", checkpoint.label()))),
        };
        let mut generation = parts.generation;
        let ids = &mut generation.eos_token_ids;
        ids.extend(tokenizer.iter().flat_map(|t| t.eos_ids()));
        let vocab_size = parts.config.vocab_size;
        let mut seen = Vec::new();
        ids.retain(|&id| (id as usize) < vocab_size && !seen.contains(&id) && (seen.push(id), true).1);
        if let Some(t) = tokenizer.as_ref().filter(|t| t.vocab_size() > vocab_size) {
            let problem = format!("{} ids, but the model knows only {vocab_size}", t.vocab_size());
            return Err(ModelError::Config { file: checkpoint.label().into(), field: "tokenizer".into(), problem });
        }
        Ok(Self { checkpoint: Arc::new(checkpoint), config: parts.config, tokenizer, tokenizer_missing, generation })
    }
}

struct Parts {
    config: ModelConfig,
    tokenizer: Option<Result<Tokenizer, TokenizerError>>,
    generation: GenerationDefaults,
}

// ---- Hugging Face ----

fn hugging_face_parts(checkpoint: &Checkpoint, name: &str) -> Result<Parts, ModelError> {
    let fail = |file: &str, problem: &str| {
        let file = format!("{}/{file}", checkpoint.label());
        ModelError::Config { file, field: "JSON".into(), problem: problem.into() }
    };
    let text = checkpoint.text(CONFIG)?.ok_or_else(|| fail(CONFIG, "is missing"))?;
    let text = std::str::from_utf8(text.as_slice()).map_err(|_| fail(CONFIG, "is not UTF-8"))?;
    let json = ConfigJson::parse(text)?;
    let config = (registry::by_json(CONFIG, &json.architectures())?.read_json)(&json, name)?;

    let generation_bytes = checkpoint.text(GENERATION)?;
    let mut generation = match &generation_bytes {
        Some(bytes) => {
            let object: Map<String, Value> =
                serde_json::from_slice(bytes.as_slice()).map_err(|error| fail(GENERATION, &error.to_string()))?;
            generation_from_json(&object)?
        }
        None => GenerationDefaults::default(),
    };
    if generation.eos_token_ids.is_empty() {
        generation.eos_token_ids = json.token_ids("eos_token_id");
    }

    let tokenizer_json = checkpoint.text("tokenizer.json")?;
    let tokenizer_config_json = checkpoint.text("tokenizer_config.json")?;
    let chat_template_jinja = checkpoint.text("chat_template.jinja")?;
    let tokenizer = tokenizer_json.map(|tokenizer_json| {
        Tokenizer::from_huggingface(HuggingFaceFiles {
            tokenizer_json: tokenizer_json.as_slice(),
            tokenizer_config_json: tokenizer_config_json.as_ref().map(Bytes::as_slice),
            chat_template_jinja: chat_template_jinja.as_ref().map(Bytes::as_slice),
            generation_config_json: generation_bytes.as_ref().map(Bytes::as_slice),
        })
    });
    Ok(Parts { config, tokenizer, generation })
}

fn generation_from_json(object: &Map<String, Value>) -> Result<GenerationDefaults, ModelError> {
    let f = Fields::json(GENERATION, "", object);
    // As in transformers, sampling that is switched off makes the other fields idle.
    let greedy = f.flag("do_sample")? == Some(false);
    let mut generation = sampling_defaults(&f, ["temperature", "top_p", "top_k", "min_p", "repetition_penalty"])?;
    if greedy {
        generation.temperature = Some(0.0);
    }
    generation.eos_token_ids = token_ids(object.get("eos_token_id"));
    Ok(generation)
}

/// The five fields, each checked against the range in which it can be asked for.
fn sampling_defaults(f: &Fields, fields: [&str; 5]) -> Result<GenerationDefaults, ModelError> {
    let [temperature, top_p, top_k, min_p, penalty] = fields;
    let within = |field: &str, low: f64, high: f64| match f.optional_number(field)? {
        Some(v) if !(low..=high).contains(&v) => f.error(field, format!("{v} is not in {low}..={high}")),
        value => Ok(value.map(|v| v as f32)),
    };
    Ok(GenerationDefaults {
        temperature: within(temperature, 0.0, 100.0)?,
        top_p: within(top_p, 1e-6, 1.0)?,
        top_k: within(top_k, 0.0, 1e9)?.map(|k| k as u32),
        min_p: within(min_p, 0.0, 0.999_999)?,
        repetition_penalty: within(penalty, 1e-3, 100.0)?,
        eos_token_ids: Vec::new(),
    })
}

// ---- GGUF ----

fn gguf_parts(checkpoint: &Checkpoint, metadata: &GgufMetadata, file_name: &str) -> Result<Parts, ModelError> {
    let architecture = registry::by_gguf(metadata.file(), metadata.require("general.architecture")?)?;
    let name = metadata.str("general.name")?.unwrap_or(file_name).to_string();
    let prefix = format!("{}.", architecture.gguf);
    let fields = Fields::new(metadata.file(), &prefix, |field| scalar(metadata.get(&format!("{prefix}{field}"))?));
    let config = (architecture.read_gguf)(&fields, &name, &tensor_facts(checkpoint)?)?;

    // Keys that llama.cpp writes since late 2025. R1's makers ask for 0.6 and 0.95; older files cannot say so.
    let keys = ["temp", "top_p", "top_k", "min_p", "penalty_repeat"];
    let sampling = Fields::new(metadata.file(), "general.sampling.", |field| {
        scalar(metadata.get(&format!("general.sampling.{field}"))?)
    });
    let mut generation = sampling_defaults(&sampling, keys)?;
    let plain_name: String = name.to_lowercase().chars().filter(char::is_ascii_alphanumeric).collect();
    if plain_name.contains("deepseekr1") {
        generation.temperature.get_or_insert(0.6);
        generation.top_p.get_or_insert(0.95);
    }
    let eos_keys = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];
    for key in eos_keys {
        generation.eos_token_ids.extend(metadata.u32(key)?);
    }

    let tokenizer = match metadata.str("tokenizer.ggml.model")? {
        None | Some("no_vocab" | "none") => None,
        Some(_) => Some(Tokenizer::from_gguf(vocabulary(metadata)?)),
    };
    Ok(Parts { config, tokenizer, generation })
}

fn scalar(value: &GgufValue) -> Option<Scalar> {
    Some(match *value {
        GgufValue::U8(v) => Scalar::Int(v.into()),
        GgufValue::I8(v) => Scalar::Int(v.into()),
        GgufValue::U16(v) => Scalar::Int(v.into()),
        GgufValue::I16(v) => Scalar::Int(v.into()),
        GgufValue::U32(v) => Scalar::Int(v.into()),
        GgufValue::I32(v) => Scalar::Int(v.into()),
        GgufValue::U64(v) => Scalar::Int(v.into()),
        GgufValue::I64(v) => Scalar::Int(v.into()),
        GgufValue::F32(v) => Scalar::Float(v.into()),
        GgufValue::F64(v) => Scalar::Float(v),
        GgufValue::Bool(v) => Scalar::Bool(v),
        GgufValue::String(ref v) => Scalar::Text(v.clone()),
        GgufValue::Array(_) => Scalar::Other,
    })
}

fn tensor_facts(checkpoint: &Checkpoint) -> Result<TensorFacts, ModelError> {
    let naming = Naming::Gguf;
    let has = |role: Role| checkpoint.info(&naming.name(role, 0, 0)).is_some();
    let embedding = naming.name(Role::Embedding, 0, 0);
    let Some(info) = checkpoint.info(&embedding) else {
        return Err(ModelError::MissingTensor { name: embedding });
    };
    let bias_of_any_layer = checkpoint.tensors().any(|t| t.name.ends_with(".exp_probs_b.bias"));
    Ok(TensorFacts {
        embedding_rows: info.shape.first().copied().unwrap_or(0),
        has_head: has(Role::Head),
        has_qkv_bias: has(Role::QueryBias),
        has_output_bias: has(Role::OutputBias),
        has_correction_bias: bias_of_any_layer,
    })
}

fn vocabulary(metadata: &GgufMetadata) -> Result<GgufVocabulary, ModelError> {
    let text = |key: &str| -> Result<Option<String>, ModelError> { Ok(metadata.str(key)?.map(str::to_string)) };
    let texts = |key: &str| -> Result<Vec<String>, ModelError> {
        Ok(metadata.str_array(key)?.into_iter().flat_map(|all| all.iter().map(str::to_string)).collect())
    };
    Ok(GgufVocabulary {
        model: metadata.require::<&str>("tokenizer.ggml.model")?.to_string(),
        pre: text("tokenizer.ggml.pre")?,
        tokens: texts("tokenizer.ggml.tokens")?,
        token_types: metadata.i32_array("tokenizer.ggml.token_type")?.unwrap_or_default(),
        merges: texts("tokenizer.ggml.merges")?,
        bos_id: metadata.u32("tokenizer.ggml.bos_token_id")?,
        eos_id: metadata.u32("tokenizer.ggml.eos_token_id")?,
        unknown_id: metadata.u32("tokenizer.ggml.unknown_token_id")?,
        padding_id: metadata.u32("tokenizer.ggml.padding_token_id")?,
        eot_id: metadata.u32("tokenizer.ggml.eot_token_id")?,
        eom_id: metadata.u32("tokenizer.ggml.eom_token_id")?,
        add_bos: metadata.bool("tokenizer.ggml.add_bos_token")?,
        add_eos: metadata.bool("tokenizer.ggml.add_eos_token")?,
        chat_template: text("tokenizer.chat_template")?,
    })
}
