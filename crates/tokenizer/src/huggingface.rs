//! A tokenizer from the files of a Hugging Face folder: tokenizer.json, tokenizer_config.json and their companions.

use std::collections::HashMap;

use lingqu_types::TokenId;
use serde::Deserialize;
use serde_json::Value;

use crate::chat::ChatTemplate;
use crate::encoder::{AddedEntry, EncoderParts};
use crate::error::TokenizerError;
use crate::tokenizer::{SpecialTokens, Tokenizer, TokenizerParts};

const TOKENIZER_JSON: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const GENERATION_CONFIG: &str = "generation_config.json";

/// tokenizer.json of the largest vocabularies is some 35 MB.
const TOKENIZER_JSON_BYTES_MAX: usize = 256 << 20;
const CONFIG_BYTES_MAX: usize = 16 << 20;

/// What the files hold, as bytes. Only tokenizer.json is needed.
#[derive(Clone, Copy, Default)]
pub struct HuggingFaceFiles<'a> {
    pub tokenizer_json: &'a [u8],
    /// Special tokens, whether to add them, and often the chat template.
    pub tokenizer_config_json: Option<&'a [u8]>,
    /// Goes before the template in tokenizer_config.json.
    pub chat_template_jinja: Option<&'a [u8]>,
    /// Its `eos_token_id` (one or several) ends a generation, besides tokenizer_config.json's `eos_token`.
    pub generation_config_json: Option<&'a [u8]>,
}

#[derive(Deserialize)]
struct TokenizerJson {
    #[serde(default)]
    added_tokens: Vec<AddedTokenJson>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    model: ModelJson,
}

#[derive(Deserialize)]
struct ModelJson {
    vocab: HashMap<String, TokenId>,
    merges: Vec<MergeJson>,
    #[serde(default)]
    ignore_merges: Option<bool>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum MergeJson {
    Pair(String, String),
    Joined(String),
}

#[derive(Deserialize)]
struct AddedTokenJson {
    id: TokenId,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize, Default)]
struct TokenizerConfig {
    #[serde(default)]
    tokenizer_class: Option<String>,
    #[serde(default)]
    add_bos_token: Option<bool>,
    #[serde(default)]
    add_eos_token: Option<bool>,
    #[serde(default)]
    chat_template: Value,
    #[serde(default)]
    bos_token: Value,
    #[serde(default)]
    eos_token: Value,
    #[serde(default)]
    unk_token: Value,
    #[serde(default)]
    pad_token: Value,
}

/// Reads the type alone, to say what is wrong when the whole does not read.
#[derive(Deserialize)]
struct ModelTypeOnly {
    model: TypeOnly,
}

#[derive(Deserialize)]
struct TypeOnly {
    #[serde(rename = "type")]
    kind: Option<String>,
}

impl Tokenizer {
    /// Reads the tokenizer of a Hugging Face folder. Ids, special tokens and rendered chats are those of
    /// `transformers.AutoTokenizer`.
    ///
    /// # Errors
    /// Names the file and field that is missing, wrong, too large or of a kind that is not supported.
    pub fn from_huggingface(files: HuggingFaceFiles<'_>) -> Result<Self, TokenizerError> {
        let json = read_tokenizer_json(files.tokenizer_json)?;
        let config: TokenizerConfig = read_config(TOKENIZER_CONFIG, files.tokenizer_config_json)?.unwrap_or_default();
        let decoder = json.decoder.get("type").and_then(Value::as_str).unwrap_or("none");
        if decoder != "ByteLevel" {
            return Err(TokenizerError::Unsupported {
                source_name: TOKENIZER_JSON,
                field: "decoder",
                value: decoder.to_owned(),
                supported: "ByteLevel",
            });
        }
        let post_processor = json.post_processor.clone();
        let encoder = encoder_parts(json)?;
        let ids: HashMap<&str, TokenId> = encoder
            .vocab
            .iter()
            .map(|(content, id)| (content.as_str(), *id))
            .chain(encoder.added.iter().map(|a| (a.content.as_str(), a.id)))
            .collect();
        let mut special = SpecialTokens::default();
        let named = |value: &Value| -> Option<(String, TokenId)> {
            let content = value.as_str().or_else(|| value.get("content").and_then(Value::as_str))?;
            ids.get(content).map(|&id| (content.to_owned(), id))
        };
        special.bos = named(&config.bos_token);
        special.unknown = named(&config.unk_token);
        special.pad = named(&config.pad_token);
        special.eos = named(&config.eos_token);
        special.eos_ids = special.eos.iter().map(|&(_, id)| id).collect();
        for id in generation_eos_ids(files.generation_config_json)? {
            if !special.eos_ids.contains(&id) {
                special.eos_ids.push(id);
            }
        }
        (special.prefix, special.suffix) = match config.tokenizer_class.as_deref() {
            // `LlamaTokenizerFast` builds its own post-processor from these two and drops the file's.
            Some("LlamaTokenizer" | "LlamaTokenizerFast" | "CodeLlamaTokenizer" | "CodeLlamaTokenizerFast") => {
                let ids = |add: bool, token: &Option<(String, TokenId)>| -> Vec<TokenId> {
                    token.iter().filter(|_| add).map(|&(_, id)| id).collect()
                };
                (
                    ids(config.add_bos_token.unwrap_or(true), &special.bos),
                    ids(config.add_eos_token.unwrap_or(false), &special.eos),
                )
            }
            _ => {
                let (mut prefix, suffix) = template_tokens(&post_processor)?;
                // Transformers 5 heeds an explicit wish in every class; 4 did so in Llama's alone.
                if let (Some(true), Some((_, bos)), true) = (config.add_bos_token, &special.bos, prefix.is_empty()) {
                    prefix.push(*bos);
                }
                (prefix, suffix)
            }
        };
        drop(ids);
        let template = chat_template_source(&files, &config)?;
        let chat_template = template.map(|source| ChatTemplate::new(&source)).transpose().map_err(|e| {
            let name = if files.chat_template_jinja.is_some() { "chat_template.jinja" } else { TOKENIZER_CONFIG };
            TokenizerError::invalid(name, "chat_template", e)
        })?;
        Tokenizer::from_parts(TokenizerParts { encoder, special, absent: Vec::new(), chat_template })
    }
}

fn read_tokenizer_json(bytes: &[u8]) -> Result<TokenizerJson, TokenizerError> {
    check_size(TOKENIZER_JSON, bytes, TOKENIZER_JSON_BYTES_MAX)?;
    let unsupported = |kind: Option<String>| TokenizerError::Unsupported {
        source_name: TOKENIZER_JSON,
        field: "model.type",
        value: kind.unwrap_or_else(|| "none".into()),
        supported: "BPE",
    };
    let kind = serde_json::from_slice::<ModelTypeOnly>(bytes)
        .map_err(|e| TokenizerError::invalid(TOKENIZER_JSON, "model", e))?
        .model
        .kind;
    // Old files name no type; their model is read as BPE and fails with the field that is missing if it is not.
    if !matches!(kind.as_deref(), None | Some("BPE")) {
        return Err(unsupported(kind));
    }
    serde_json::from_slice(bytes).map_err(|e| TokenizerError::invalid(TOKENIZER_JSON, "content", e))
}

fn read_config<T: for<'de> Deserialize<'de>>(
    name: &'static str,
    bytes: Option<&[u8]>,
) -> Result<Option<T>, TokenizerError> {
    let Some(bytes) = bytes else { return Ok(None) };
    check_size(name, bytes, CONFIG_BYTES_MAX)?;
    serde_json::from_slice(bytes).map(Some).map_err(|e| TokenizerError::invalid(name, "content", e))
}

fn check_size(name: &'static str, bytes: &[u8], bytes_max: usize) -> Result<(), TokenizerError> {
    if bytes.len() > bytes_max {
        return Err(TokenizerError::invalid(name, "size", format!("{} bytes exceed {bytes_max}", bytes.len())));
    }
    Ok(())
}

fn encoder_parts(json: TokenizerJson) -> Result<EncoderParts, TokenizerError> {
    for (field, value) in [
        ("model.continuing_subword_prefix", json.model.continuing_subword_prefix),
        ("model.end_of_word_suffix", json.model.end_of_word_suffix),
    ] {
        if let Some(value) = value.filter(|v| !v.is_empty()) {
            return Err(TokenizerError::Unsupported {
                source_name: TOKENIZER_JSON,
                field,
                value,
                supported: "none: byte-level BPE has no use for it",
            });
        }
    }
    let mut merges = Vec::with_capacity(json.model.merges.len());
    for (rank, merge) in json.model.merges.into_iter().enumerate() {
        merges.push(match merge {
            MergeJson::Pair(left, right) => (left, right),
            MergeJson::Joined(line) => split_merge(line).ok_or_else(|| {
                TokenizerError::invalid(TOKENIZER_JSON, format!("merges[{rank}]"), "is not two tokens and a space")
            })?,
        });
    }
    let added = json
        .added_tokens
        .into_iter()
        .filter(|a| !a.content.is_empty())
        .map(|a| AddedEntry {
            id: a.id,
            content: a.content,
            special: a.special,
            normalized: a.normalized,
            single_word: a.single_word,
            lstrip: a.lstrip,
            rstrip: a.rstrip,
        })
        .collect();
    Ok(EncoderParts {
        source_name: TOKENIZER_JSON,
        vocab: json.model.vocab.into_iter().collect(),
        merges,
        ignore_merges: json.model.ignore_merges.unwrap_or(false),
        added,
        normalizer: json.normalizer,
        pre_tokenizer: json.pre_tokenizer,
    })
}

/// "left right" with exactly one space.
pub(crate) fn split_merge(line: String) -> Option<(String, String)> {
    let space = line.find(' ')?;
    let mut left = line;
    let right = left.split_off(space + 1);
    left.truncate(space);
    (!left.is_empty() && !right.is_empty() && !right.contains(' ')).then_some((left, right))
}

/// The ids that a post-processor puts before and after a single text.
fn template_tokens(post_processor: &Value) -> Result<(Vec<TokenId>, Vec<TokenId>), TokenizerError> {
    let invalid = |problem: &str| TokenizerError::invalid(TOKENIZER_JSON, "post_processor", problem);
    let (mut prefix, mut suffix) = (Vec::new(), Vec::new());
    let whole = std::slice::from_ref(post_processor);
    let steps = post_processor.get("processors").and_then(Value::as_array).map_or(whole, Vec::as_slice);
    for step in steps {
        let kind = step.get("type").and_then(Value::as_str);
        match kind {
            None | Some("ByteLevel") => continue,
            Some("TemplateProcessing") => {}
            Some(other) => {
                return Err(TokenizerError::Unsupported {
                    source_name: TOKENIZER_JSON,
                    field: "post_processor",
                    value: other.to_owned(),
                    supported: "ByteLevel, TemplateProcessing, Sequence of these",
                });
            }
        }
        let single = step.get("single").and_then(Value::as_array).ok_or_else(|| invalid("has no list `single`"))?;
        let mut after = false;
        for piece in single {
            if piece.get("Sequence").is_some() {
                after = true;
                continue;
            }
            let name = piece
                .pointer("/SpecialToken/id")
                .and_then(Value::as_str)
                .ok_or_else(|| invalid("`single` holds neither SpecialToken nor Sequence"))?;
            let ids = step.get("special_tokens").and_then(|v| v.get(name)).and_then(|v| v.get("ids"));
            let ids: Vec<TokenId> = ids
                .and_then(|v| Vec::deserialize(v).ok())
                .ok_or_else(|| invalid("`special_tokens` lacks a token of `single`"))?;
            if after { suffix.extend(ids) } else { prefix.extend(ids) }
        }
    }
    Ok((prefix, suffix))
}

fn generation_eos_ids(bytes: Option<&[u8]>) -> Result<Vec<TokenId>, TokenizerError> {
    #[derive(Deserialize)]
    struct GenerationConfig {
        #[serde(default)]
        eos_token_id: Value,
    }
    let Some(config) = read_config::<GenerationConfig>(GENERATION_CONFIG, bytes)? else { return Ok(Vec::new()) };
    let ids = match &config.eos_token_id {
        Value::Null => return Ok(Vec::new()),
        Value::Array(ids) => ids.iter().map(TokenId::deserialize).collect(),
        id => TokenId::deserialize(id).map(|id| vec![id]),
    };
    ids.map_err(|e| TokenizerError::invalid(GENERATION_CONFIG, "eos_token_id", e))
}

fn chat_template_source(
    files: &HuggingFaceFiles<'_>,
    config: &TokenizerConfig,
) -> Result<Option<String>, TokenizerError> {
    if let Some(bytes) = files.chat_template_jinja {
        check_size("chat_template.jinja", bytes, CONFIG_BYTES_MAX)?;
        let text =
            std::str::from_utf8(bytes).map_err(|e| TokenizerError::invalid("chat_template.jinja", "content", e))?;
        return Ok(Some(text.to_owned()));
    }
    match &config.chat_template {
        Value::String(source) => Ok(Some(source.clone())),
        // Several templates by name; `default` is what apply_chat_template takes.
        Value::Array(list) => {
            let default = list.iter().find(|t| t.get("name").and_then(Value::as_str) == Some("default"));
            Ok(default.and_then(|t| t.get("template")).and_then(Value::as_str).map(str::to_owned))
        }
        _ => Ok(None),
    }
}
