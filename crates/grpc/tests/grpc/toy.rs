//! A tokenizer for the toy model.

use std::sync::Arc;

use lingqu_backend::Backend;
use lingqu_testkit::reciting::Reciting;
use lingqu_testkit::toy::{TOY_VOCAB, ToyBackend};
use lingqu_tokenizer::{EncodeOptions, GgufVocabulary, Tokenizer};
use lingqu_types::{Limits, TokenId};

/// Not letters, in the byte alphabet: Ġ is the space, the last five are the bytes of 你 (E4 BD A0) and of 好 (E5 A5 BD,
/// whose BD is there already).
const SIGNS: [&str; 11] = ["Ġ", ".", "<", "/", ">", "|", "ä", "½", "ł", "å", "¥"];
/// What JSON needs beside. Ċ is the line's end.
const JSON_SIGNS: [&str; 9] = ["{", "}", "[", "]", "\"", ":", ",", "_", "Ċ"];
const CONTROL: [&str; 4] = ["<bos>", "<eos>", "<user>", "<assistant>"];

/// Knows tools, as Hermes writes their calls; results must say of which call they are.
const TEMPLATE: &str = "<bos>{% for t in tools or [] %}{{ t.function.name }}{% endfor %}{% for m in messages %}\
    {% if m.role == 'tool' and not m.tool_call_id %}{{ raise_exception('of no call') }}{% endif %}\
    <{{ m.role }}>{{ (m.content or '').split('</think>')[-1] }}\
    {% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }}</tool_call>{% endfor %}{% endfor %}\
    {% if add_generation_prompt %}<assistant>{% endif %}";

/// Letters, [`SIGNS`], [`CONTROL`], some capitals, [`JSON_SIGNS`]: one token for each byte it knows.
pub fn tokenizer(with_template: bool) -> Tokenizer {
    let letters = ('a'..='z').map(String::from);
    let capitals = ('A'..='K').map(String::from);
    let tokens = letters.chain(SIGNS.map(String::from)).chain(CONTROL.map(String::from)).chain(capitals);
    let tokens: Vec<String> = tokens.chain(JSON_SIGNS.map(String::from)).collect();
    assert_eq!(tokens.len(), TOY_VOCAB);
    let id = |name: &str| tokens.iter().position(|t| t == name).expect("a token") as TokenId;
    let vocabulary = GgufVocabulary {
        model: "gpt2".into(),
        pre: Some("qwen2".into()),
        token_types: tokens.iter().map(|t| if CONTROL.contains(&t.as_str()) { 3 } else { 1 }).collect(),
        bos_id: Some(id("<bos>")),
        eos_id: Some(id("<eos>")),
        add_bos: Some(true),
        chat_template: with_template.then(|| TEMPLATE.into()),
        tokens,
        ..GgufVocabulary::default()
    };
    Tokenizer::from_gguf(vocabulary).expect("a vocabulary")
}

/// Tokens of a text in which control tokens are written out.
pub fn ids(text: &str) -> Vec<TokenId> {
    tokenizer(false).encode(text, EncodeOptions::CHAT).expect("short")
}

/// Recites a text in which control tokens are written out; past its end: `<eos>`.
pub fn reciting(script: &str, limits: &Limits) -> Reciting {
    Reciting::new(ids(script), ids("<eos>")[0], limits)
}

/// Any device will do.
pub fn backend() -> Arc<dyn Backend> {
    Arc::new(ToyBackend::default())
}
