//! A tokenizer from a GGUF file's metadata: a gpt2-style vocabulary, and the name of a pre-tokenizer whose rules the
//! file does not spell out (they are in llama.cpp, and here as the original tokenizer.json has them).

use lingqu_types::TokenId;
use serde_json::{Value, json};

use crate::chat::ChatTemplate;
use crate::encoder::{AddedEntry, EncoderParts};
use crate::error::TokenizerError;
use crate::huggingface::split_merge;
use crate::tokenizer::{SpecialTokens, Tokenizer, TokenizerParts};
use crate::vocabulary::VOCAB_SIZE_MAX;

const GGUF: &str = "GGUF tokenizer";

/// The keys `tokenizer.*` of a GGUF file.
#[derive(Clone, Debug, Default)]
pub struct GgufVocabulary {
    /// `tokenizer.ggml.model`; `gpt2` is byte-level BPE.
    pub model: String,
    /// `tokenizer.ggml.pre`
    pub pre: Option<String>,
    /// `tokenizer.ggml.tokens`, by id, in the byte alphabet.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.token_type`, by id; empty: all are ordinary.
    pub token_types: Vec<i32>,
    /// `tokenizer.ggml.merges`: "left right", by rank.
    pub merges: Vec<String>,
    /// `tokenizer.ggml.bos_token_id` and so on.
    pub bos_id: Option<TokenId>,
    pub eos_id: Option<TokenId>,
    pub unknown_id: Option<TokenId>,
    pub padding_id: Option<TokenId>,
    /// End of turn, end of message: these end a generation too.
    pub eot_id: Option<TokenId>,
    pub eom_id: Option<TokenId>,
    /// `tokenizer.ggml.add_bos_token`
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`
    pub add_eos: Option<bool>,
    /// `tokenizer.chat_template`
    pub chat_template: Option<String>,
}

/// Values of `token_type` (gguf specification, `tokenizer.ggml.token_type`).
const TYPE_CONTROL: i32 = 3;
const TYPE_USER_DEFINED: i32 = 4;
const TYPE_UNUSED: i32 = 5;

/// Control tokens that end a generation though no key names them.
const END_CONTENTS: [&str; 6] =
    ["<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end_of_text|>", "<|endoftext|>", "<｜end▁of▁sentence｜>"];

impl Tokenizer {
    /// Reads the vocabulary of a GGUF file.
    ///
    /// # Errors
    /// Names the key that is wrong or not supported: other models than `gpt2`, unknown pre-tokenizers.
    pub fn from_gguf(vocabulary: GgufVocabulary) -> Result<Self, TokenizerError> {
        let v = vocabulary;
        if v.model != "gpt2" {
            return Err(TokenizerError::Unsupported {
                source_name: GGUF,
                field: "tokenizer.ggml.model",
                value: v.model,
                supported: "gpt2",
            });
        }
        let rules = PreTokenizerRules::named(v.pre.as_deref())?;
        if v.tokens.len() > VOCAB_SIZE_MAX {
            let problem = format!("{} tokens are more than {VOCAB_SIZE_MAX}", v.tokens.len());
            return Err(TokenizerError::invalid(GGUF, "tokenizer.ggml.tokens", problem));
        }
        if !v.token_types.is_empty() && v.token_types.len() != v.tokens.len() {
            let problem = format!("{} types for {} tokens", v.token_types.len(), v.tokens.len());
            return Err(TokenizerError::invalid(GGUF, "tokenizer.ggml.token_type", problem));
        }
        let special = special_tokens(&v, &rules)?;
        let merges = v.merges.into_iter().enumerate().map(|(rank, line)| {
            split_merge(line).ok_or_else(|| {
                let field = format!("tokenizer.ggml.merges[{rank}]");
                TokenizerError::invalid(GGUF, field, "is not two tokens and a space")
            })
        });
        let merges = merges.collect::<Result<Vec<_>, _>>()?;
        let (mut vocab, mut added, mut absent) = (Vec::new(), Vec::new(), Vec::new());
        for (id, content) in v.tokens.into_iter().enumerate() {
            let kind = v.token_types.get(id).copied().unwrap_or(1);
            let id = id as TokenId;
            match kind {
                TYPE_UNUSED => absent.push(id),
                TYPE_CONTROL | TYPE_USER_DEFINED => {
                    // llama.cpp escapes nothing here: contents are plain text, not the byte alphabet.
                    added.push(AddedEntry {
                        id,
                        content,
                        special: kind == TYPE_CONTROL,
                        normalized: false,
                        single_word: false,
                        lstrip: false,
                        rstrip: false,
                    });
                }
                _ => vocab.push((content, id)),
            }
        }
        let encoder = EncoderParts {
            source_name: GGUF,
            vocab,
            merges,
            ignore_merges: rules.ignore_merges,
            added,
            normalizer: rules.normalizer,
            pre_tokenizer: rules.pre_tokenizer,
        };
        let chat_template = v.chat_template.map(|source| ChatTemplate::new(&source)).transpose();
        let chat_template = chat_template.map_err(|e| TokenizerError::invalid(GGUF, "tokenizer.chat_template", e))?;
        Tokenizer::from_parts(TokenizerParts { encoder, special, absent, chat_template })
    }
}

fn special_tokens(v: &GgufVocabulary, rules: &PreTokenizerRules) -> Result<SpecialTokens, TokenizerError> {
    let named = |key: &str, id: Option<TokenId>| -> Result<Option<(String, TokenId)>, TokenizerError> {
        let Some(id) = id else { return Ok(None) };
        let content = v.tokens.get(id as usize).ok_or_else(|| {
            let problem = format!("{id} is not below the {} tokens", v.tokens.len());
            TokenizerError::invalid(GGUF, format!("tokenizer.ggml.{key}"), problem)
        })?;
        Ok(Some((content.clone(), id)))
    };
    let mut special = SpecialTokens {
        bos: named("bos_token_id", v.bos_id)?,
        eos: named("eos_token_id", v.eos_id)?,
        unknown: named("unknown_token_id", v.unknown_id)?,
        pad: named("padding_token_id", v.padding_id)?,
        ..SpecialTokens::default()
    };
    let turn = named("eot_token_id", v.eot_id)?;
    let message = named("eom_token_id", v.eom_id)?;
    let ends = [&special.eos, &turn, &message].into_iter().flatten().map(|&(_, id)| id);
    let by_content = v.tokens.iter().zip(&v.token_types).enumerate().filter_map(|(id, (content, &kind))| {
        (kind == TYPE_CONTROL && END_CONTENTS.contains(&content.as_str())).then_some(id as TokenId)
    });
    for id in ends.chain(by_content) {
        if !special.eos_ids.contains(&id) {
            special.eos_ids.push(id);
        }
    }
    if v.add_bos.unwrap_or(rules.add_bos) {
        special.prefix.extend(special.bos.as_ref().map(|&(_, id)| id));
    }
    if v.add_eos.unwrap_or(false) {
        special.suffix.extend(special.eos.as_ref().map(|&(_, id)| id));
    }
    Ok(special)
}

/// What the name of a pre-tokenizer means, in tokenizer.json's terms.
struct PreTokenizerRules {
    normalizer: Value,
    pre_tokenizer: Value,
    ignore_merges: bool,
    /// Where the file does not say.
    add_bos: bool,
}

/// Contractions, words, numbers of up to {DIGITS} figures, runs of signs, line ends, spaces (Llama 3, Qwen2).
const WORDS_BEFORE_DIGITS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|";
const WORDS_AFTER_DIGITS: &str = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const DEEPSEEK_V3: [&str; 3] = [
    r"\p{N}{1,3}",
    r"[一-龥\u{3040}-ゟ゠-ヿ]+",
    concat!(
        r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"##,
        r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
];

/// Cased letters as of DeepSeek's first tokenizers (V1 and V2), then their punctuation.
const DEEPSEEK_LLM: [&str; 5] = [
    r"[\r\n]",
    concat!(
        r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕ",
        r"ἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u{1f7d}",
        r"ᾀ-ᾴᾶ-ᾼ\u{1fbe}ῂ-ῄῆ-ῌῐ-\u{1fd3}ῖ-\u{1fdb}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u{2126}ℨ\u{212a}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃ",
        r"ↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯ",
        r"ꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+",
    ),
    r"\s?[!-/:-~！-／：-～‘-‟\u{3000}-。]+",
    r"\s+$",
    r"[一-龥\u{800}-一가-\u{d7ff}]+",
];

const DEEPSEEK_CODER: [&str; 4] = [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥\u{800}-一가-\u{d7ff}]+"];

impl PreTokenizerRules {
    fn named(pre: Option<&str>) -> Result<Self, TokenizerError> {
        let words = |digits: &str| vec![split(&format!("{WORDS_BEFORE_DIGITS}{digits}{WORDS_AFTER_DIGITS}"))];
        let splits = |patterns: &[&str]| patterns.iter().map(|p| split(p)).collect::<Vec<_>>();
        let digits = json!({"type": "Digits", "individual_digits": true});
        let plain = |mut steps: Vec<Value>, use_regex: bool| {
            steps.push(json!({
                "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex
            }));
            Self {
                normalizer: Value::Null,
                pre_tokenizer: json!({"type": "Sequence", "pretokenizers": steps}),
                ignore_merges: false,
                add_bos: false,
            }
        };
        Ok(match pre {
            Some("llama-bpe" | "llama3" | "llama-v3") => {
                Self { ignore_merges: true, add_bos: true, ..plain(words(r"\p{N}{1,3}"), false) }
            }
            Some("deepseek-r1-qwen") => plain(words(r"\p{N}"), false),
            Some("qwen2") => Self { normalizer: json!({"type": "NFC"}), ..plain(words(r"\p{N}"), false) },
            Some("deepseek-v3") => plain(splits(&DEEPSEEK_V3), false),
            Some("deepseek-llm") => plain([splits(&DEEPSEEK_LLM), vec![digits]].concat(), false),
            Some("deepseek-coder") => plain([splits(&DEEPSEEK_CODER), vec![digits]].concat(), false),
            Some("smollm") => plain(vec![digits], true),
            Some("gpt-2") => plain(Vec::new(), true),
            other => {
                return Err(TokenizerError::Unsupported {
                    source_name: GGUF,
                    field: "tokenizer.ggml.pre",
                    value: other.unwrap_or("(missing)").chars().take(80).collect(),
                    supported: "llama-bpe, qwen2, deepseek-v3, deepseek-r1-qwen, deepseek-llm, deepseek-coder, \
                                smollm, gpt-2",
                });
            }
        })
    }
}

/// Cuts at every match; matches and what lies between are pieces.
fn split(pattern: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
}
