//! Tokenizers, a model that says anything at all, and a plain checker of JSON schemas.

#![allow(dead_code)] // Each test file uses a part.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lingqu_grammar::{GrammarCompiler, GrammarSpec, GrammarStart};
use lingqu_sampler::{Constraint, Draw, Sampler, TokenMask};
use lingqu_testkit::rng::Rng;
use lingqu_tokenizer::{HuggingFaceFiles, Tokenizer};
use lingqu_types::{SamplingParams, TokenId};
use serde_json::Value;

/// Ids that the model has beyond its tokenizer: padding.
pub const PADDING: usize = 37;

pub struct Vocabulary {
    pub name: &'static str,
    pub tokenizer: Arc<Tokenizer>,
    pub eos: Vec<TokenId>,
    /// Of the model.
    pub vocab: usize,
    pub compiler: GrammarCompiler,
    /// Tokens that close something, and so help a reply to its end.
    closing: Vec<TokenId>,
}

/// A tokenizer by its folder, from the root of the repository.
pub fn vocabulary(name: &'static str) -> Vocabulary {
    let folder = root().join(name);
    let read = |file: &str| fs::read(folder.join(file)).ok();
    let json = read("tokenizer.json").unwrap_or_else(|| panic!("{name}: no tokenizer.json"));
    let config = read("tokenizer_config.json");
    let files = HuggingFaceFiles {
        tokenizer_json: &json,
        tokenizer_config_json: config.as_deref(),
        ..HuggingFaceFiles::default()
    };
    let tokenizer = Arc::new(Tokenizer::from_huggingface(files).expect("a tokenizer"));
    let eos = match tokenizer.eos_ids() {
        [] => vec![(0..tokenizer.vocab_size() as TokenId).find(|&id| tokenizer.is_special(id)).expect("a special one")],
        eos => eos.to_vec(),
    };
    let vocab = tokenizer.vocab_size() + PADDING;
    let compiler = GrammarCompiler::new(tokenizer.clone(), &eos, vocab).expect("a vocabulary");
    let closes = |&id: &TokenId| {
        let bytes = tokenizer.token_bytes(id).unwrap_or_default();
        matches!(bytes.as_slice(), b"\"" | b"}" | b"]" | b"\"}" | b"</think>" | b"think" | b">") || eos.contains(&id)
    };
    let closing = (0..vocab as TokenId).filter(closes).collect();
    Vocabulary { name, tokenizer, eos, vocab, compiler, closing }
}

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// What a constrained generation led to.
pub struct Reply {
    pub ids: Vec<TokenId>,
    pub text: String,
    /// It came to its end within the tokens that it was given.
    pub ended: bool,
}

impl Vocabulary {
    pub fn compile(&self, spec: &GrammarSpec, start: &GrammarStart) -> Box<dyn Constraint> {
        self.compiler.compile(spec, start).unwrap_or_else(|e| panic!("{}: {spec:?}: {e}", self.name))
    }

    /// Generates as an engine does, from logits without any sense. They come to favour what closes strings and
    /// brackets, so that replies end. Now and then some tokens are taken back and drawn again.
    pub fn generate(&self, spec: &GrammarSpec, start: &GrammarStart, seed: u64) -> Reply {
        const TOKENS_MAX: usize = 600;
        let mut constraint = self.compile(spec, start);
        let mut rng = Rng::new(seed);
        let sampling = SamplingParams { seed: Some(seed), ..SamplingParams::default() };
        let mut sampler = Sampler::new(&sampling, seed, &[]);
        let mut mask = TokenMask::new(self.vocab);
        let mut ids: Vec<TokenId> = Vec::new();
        let mut ended = false;
        for index in 0..TOKENS_MAX {
            mask.clear();
            constraint.allow(&mut mask).unwrap_or_else(|e| panic!("{}: {spec:?} {ids:?}: {e}", self.name));
            assert!(
                (self.tokenizer.vocab_size()..self.vocab).all(|id| !mask.allows(id as TokenId)),
                "padding is no token"
            );
            let mut logits = self.logits(&mut rng, index);
            let how = Draw { output_index: index as u64, report_logprob: false, allowed: Some(&mask) };
            let token = sampler.sample(&mut logits, how).expect("a token can come").token;
            if self.eos.contains(&token) {
                ended = true;
                break;
            }
            constraint.accept(token).unwrap_or_else(|e| panic!("{}: {ids:?} {token}: {e}", self.name));
            ids.push(token);
            if constraint.is_over() {
                ended = true;
                break;
            }
            if rng.chance(8) {
                self.take_back(constraint.as_mut(), &mut rng, &ids);
            }
        }
        Reply { text: self.tokenizer.decode(&ids, false), ids, ended }
    }

    fn logits(&self, rng: &mut Rng, index: usize) -> Vec<f32> {
        let close = (index as f32 / 12.0).min(30.0);
        let mut logits: Vec<f32> = (0..self.vocab).map(|_| rng.below(1000) as f32 / 250.0).collect();
        self.closing.iter().for_each(|&id| logits[id as usize] += close);
        logits
    }

    /// Goes on a few tokens, takes them back, and finds everything as it was.
    fn take_back(&self, constraint: &mut dyn Constraint, rng: &mut Rng, ids: &[TokenId]) {
        let allowed = |constraint: &mut dyn Constraint| {
            let mut mask = TokenMask::new(self.vocab);
            constraint.allow(&mut mask).expect("a mask");
            mask
        };
        let before = allowed(constraint);
        let mut came = 0;
        for _ in 0..rng.below(5) {
            let mask = allowed(constraint);
            let may: Vec<TokenId> =
                (0..self.vocab as TokenId).filter(|&id| mask.allows(id) && !self.eos.contains(&id)).collect();
            if may.is_empty() {
                break;
            }
            constraint.accept(may[rng.below(may.len())]).expect("it was allowed");
            came += 1;
            if constraint.is_over() {
                break;
            }
        }
        constraint.roll_back(came).unwrap_or_else(|e| panic!("{}: {ids:?}: {came} back: {e}", self.name));
        assert_eq!(allowed(constraint), before, "{}: {ids:?}: {came} tokens taken back", self.name);
    }
}

/// Whether a value is as its schema says: the keywords that the tests use, read plainly.
pub fn conforms(value: &Value, schema: &Value, whole: &Value) -> bool {
    if let Some(name) = schema["$ref"].as_str() {
        return conforms(value, whole.pointer(&name[1..]).expect("a definition"), whole);
    }
    let list = |key: &str| schema[key].as_array();
    let number = |key: &str| schema[key].as_f64();
    let is = |kind: &str| match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.as_f64().is_some_and(|v| v.fract() == 0.0),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        _ => value.is_null(),
    };
    let kinds: Vec<&str> = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        kind => kind.as_str().into_iter().collect(),
    };
    let length = value.as_str().map_or(0, |text| text.chars().count()) as f64;
    let items = value.as_array();
    let properties = schema["properties"].as_object();
    let known = |key: &str| properties.is_some_and(|p| p.contains_key(key));
    (kinds.is_empty() || kinds.iter().any(|kind| is(kind)))
        && list("enum").is_none_or(|allowed| allowed.contains(value))
        && schema.get("const").is_none_or(|only| only == value)
        && list("anyOf").is_none_or(|any| any.iter().any(|one| conforms(value, one, whole)))
        && (!value.is_string() || number("minLength").is_none_or(|min| length >= min))
        && (!value.is_string() || number("maxLength").is_none_or(|max| length <= max))
        && value.as_f64().is_none_or(|v| number("minimum").is_none_or(|min| v >= min))
        && value.as_f64().is_none_or(|v| number("maximum").is_none_or(|max| v <= max))
        && items.is_none_or(|items| {
            number("minItems").is_none_or(|min| items.len() as f64 >= min)
                && number("maxItems").is_none_or(|max| items.len() as f64 <= max)
                && schema.get("items").is_none_or(|one| items.iter().all(|item| conforms(item, one, whole)))
        })
        && value.as_object().is_none_or(|fields| {
            let required = list("required").into_iter().flatten().filter_map(Value::as_str);
            let closed = schema["additionalProperties"] == Value::Bool(false);
            required.into_iter().all(|key| fields.contains_key(key))
                && fields.iter().all(|(key, field)| match properties.and_then(|p| p.get(key)) {
                    Some(schema) => conforms(field, schema, whole),
                    None => !closed || known(key),
                })
        })
}
