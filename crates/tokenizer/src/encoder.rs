//! Text to ids. The only file that calls the `tokenizers` crate, so that it can be swapped.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::panic::{AssertUnwindSafe, catch_unwind};

use lingqu_types::TokenId;
use tokenizers::models::bpe::{BPE, Error as BpeError, Vocab};
use tokenizers::{
    AddedToken, AddedVocabulary, Model, NormalizerWrapper, OffsetReferential, OffsetType, PreTokenizer,
    PreTokenizerWrapper,
};

use crate::error::TokenizerError;
use crate::vocabulary::{TOKEN_BYTES_MAX, TokenKind, VOCAB_SIZE_MAX, Vocabulary};

/// A text longer than this is refused: the library keeps some fifty bytes for each.
const TEXT_BYTES_MAX: usize = 32 << 20;
/// Merges of one vocabulary; the largest published have about 450,000.
const MERGES_MAX: usize = 1 << 22;
/// Regular expressions and their like, as JSON.
const STEP_BYTES_MAX: usize = 1 << 16;

/// A byte-level BPE as its files tell it.
pub(crate) struct EncoderParts {
    /// What was read, for messages.
    pub source_name: &'static str,
    /// Contents in the byte alphabet.
    pub vocab: Vec<(String, TokenId)>,
    /// By rank.
    pub merges: Vec<(String, String)>,
    /// A piece that is a token as a whole becomes that token, whatever the merges say (Llama 3).
    pub ignore_merges: bool,
    /// Tokens found in the text before BPE.
    pub added: Vec<AddedEntry>,
    /// In tokenizer.json's terms; `Null` for none.
    pub normalizer: serde_json::Value,
    /// In tokenizer.json's terms.
    pub pre_tokenizer: serde_json::Value,
}

pub(crate) struct AddedEntry {
    pub id: TokenId,
    pub content: String,
    pub special: bool,
    /// Matched after normalisation rather than before.
    pub normalized: bool,
    pub single_word: bool,
    /// Swallow white space to the left, to the right.
    pub lstrip: bool,
    pub rstrip: bool,
}

pub(crate) struct Encoder {
    bpe: BPE,
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: PreTokenizerWrapper,
    added: AddedVocabulary,
    /// The same tokens, but blind to the special ones.
    added_without_special: AddedVocabulary,
}

impl EncoderParts {
    /// Checks everything that the library would panic on or believe, then builds the encoder, and the table of bytes
    /// that goes with it; `absent` ids stand for nothing.
    pub(crate) fn build(self, absent: &[TokenId]) -> Result<(Encoder, Vocabulary), TokenizerError> {
        let name = self.source_name;
        let invalid = |field: &str, problem: String| TokenizerError::invalid(name, field, problem);
        self.check_bounds()?;
        let normalizer = read_normalizer(name, &self.normalizer)?;
        let pre_tokenizer = read_pre_tokenizer(name, &self.pre_tokenizer)?;
        let vocabulary = self.vocabulary(absent);
        let Self { vocab, merges, ignore_merges, added: entries, .. } = self;
        let mut vocab = unique(name, vocab, &entries)?;
        let build = || -> tokenizers::Result<Encoder> {
            let first = vocab.len() as TokenId;
            let follow_on = (first..).zip(&entries).all(|(id, a)| a.id == id);
            if !(ignore_merges && follow_on) {
                // So the library keeps the file's ids, gaps or not; no merge leads to them. Where merges are
                // ignored a piece of text could become one, so there they stay outside if they can.
                for a in &entries {
                    vocab.entry(a.content.clone()).or_insert(a.id);
                }
            }
            let bpe = BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(ignore_merges).build()?;
            let mut added = AddedVocabulary::new();
            added.add_tokens(entries.iter().map(library_token), &bpe, normalizer.as_ref())?;
            let mut added_without_special = added.clone();
            added_without_special.set_encode_special_tokens(true);
            Ok(Encoder { bpe, normalizer, pre_tokenizer, added, added_without_special })
        };
        let encoder = catch_unwind(AssertUnwindSafe(build))
            .map_err(|_| invalid("model", "the tables contradict each other".into()))?
            .map_err(|error| match error.downcast_ref() {
                Some(BpeError::MergeTokenOutOfVocabulary(token)) => {
                    invalid("merges", format!("{token:?} is not in the vocabulary"))
                }
                _ => invalid("model", error.to_string()),
            })?;
        for a in &entries {
            let got = encoder.added.get_vocab().get(&a.content).copied();
            if got != Some(a.id) {
                let problem = format!("{:?} has id {}, which the vocabulary gives as {got:?}", a.content, a.id);
                return Err(invalid("added_tokens", problem));
            }
        }
        Ok((encoder, vocabulary))
    }

    /// Contents and ids, those of added tokens last.
    fn contents(&self) -> impl Iterator<Item = (&str, TokenId)> {
        let added = self.added.iter().map(|a| (a.content.as_str(), a.id));
        self.vocab.iter().map(|(content, id)| (content.as_str(), *id)).chain(added)
    }

    fn check_bounds(&self) -> Result<(), TokenizerError> {
        let invalid = |field: String, problem: String| Err(TokenizerError::invalid(self.source_name, field, problem));
        if self.vocab.is_empty() {
            return invalid("vocab".into(), "is empty".into());
        }
        let mut longest = 0;
        for (content, id) in self.contents() {
            longest = longest.max(content.len());
            if id as usize >= VOCAB_SIZE_MAX {
                return invalid(format!("token {id}"), format!("ids must be below {VOCAB_SIZE_MAX}"));
            }
            if content.len() > TOKEN_BYTES_MAX || content.is_empty() {
                let problem = format!("{} bytes are not in 1..={TOKEN_BYTES_MAX}", content.len());
                return invalid(format!("token {id}"), problem);
            }
        }
        if self.merges.len() > MERGES_MAX {
            return invalid("merges".into(), format!("{} are more than {MERGES_MAX}", self.merges.len()));
        }
        // The library looks up the rest, but has room for a token of the vocabulary's longest alone.
        match self.merges.iter().position(|(left, right)| left.len() + right.len() > longest) {
            Some(rank) => invalid(format!("merges[{rank}]"), "makes what is not in the vocabulary".into()),
            None => Ok(()),
        }
    }

    fn vocabulary(&self, absent: &[TokenId]) -> Vocabulary {
        let ordinary = self.vocab.iter().map(|(content, id)| (*id, content.as_str(), TokenKind::Ordinary));
        let added = self.added.iter().map(|a| {
            let kind = if a.special { TokenKind::Special } else { TokenKind::Added };
            (a.id, a.content.as_str(), kind)
        });
        let absent = absent.iter().map(|&id| (id, "", TokenKind::Absent));
        Vocabulary::new(ordinary.chain(added).chain(absent))
    }
}

/// The ordinary tokens by content. No content may have two ids, no id two contents, those of `added` counted in.
fn unique(name: &'static str, vocab: Vec<(String, TokenId)>, added: &[AddedEntry]) -> Result<Vocab, TokenizerError> {
    let twice = |content: &str, id: TokenId, other: TokenId| {
        let problem = format!("has the content of token {other}: {content:?}");
        TokenizerError::invalid(name, format!("token {id}"), problem)
    };
    let mut taken = vec![false; VOCAB_SIZE_MAX];
    let mut take = |id: TokenId| match std::mem::replace(&mut taken[id as usize], true) {
        true => Err(TokenizerError::invalid(name, format!("token {id}"), "is given twice")),
        false => Ok(()),
    };
    let mut ids_of = Vocab::with_capacity(vocab.len() + added.len());
    for (content, id) in vocab {
        match ids_of.entry(content) {
            Entry::Occupied(old) if *old.get() != id => return Err(twice(old.key(), id, *old.get())),
            Entry::Occupied(_) => {}
            Entry::Vacant(new) => {
                take(id)?;
                new.insert(id);
            }
        }
    }
    let mut ids_of_added = HashMap::new();
    for AddedEntry { content, id, .. } in added {
        let old = ids_of_added.insert(content.as_str(), *id).or(ids_of.get(content).copied());
        match old {
            Some(old) if old != *id => return Err(twice(content, *id, old)),
            Some(_) => {}
            None => take(*id)?,
        }
    }
    Ok(ids_of)
}

impl Encoder {
    /// The id of a token by its content as the file has it.
    pub(crate) fn token_id(&self, content: &str) -> Option<TokenId> {
        self.added.token_to_id(content, &self.bpe)
    }

    pub(crate) fn encode(&self, text: &str, parse_special: bool) -> Result<Vec<TokenId>, TokenizerError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(TokenizerError::TextTooLong { bytes: text.len(), bytes_max: TEXT_BYTES_MAX });
        }
        let added = if parse_special { &self.added } else { &self.added_without_special };
        let run = || -> tokenizers::Result<Vec<TokenId>> {
            let mut pieces = added.extract_and_normalize(self.normalizer.as_ref(), text);
            self.pre_tokenizer.pre_tokenize(&mut pieces)?;
            pieces.tokenize(|piece| self.bpe.tokenize(piece.get()))?;
            let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::None);
            Ok(splits.iter().flat_map(|(_, _, tokens)| tokens.iter().flatten().map(|t| t.id)).collect())
        };
        // The library asserts inside; a text must not be able to end the server whatever it finds there.
        catch_unwind(AssertUnwindSafe(run))
            .map_err(|_| TokenizerError::Encode("the tokenizer gave up on it".into()))?
            .map_err(|e| TokenizerError::Encode(e.to_string()))
    }
}

fn library_token(a: &AddedEntry) -> AddedToken {
    AddedToken::from(a.content.clone(), a.special)
        .normalized(a.normalized)
        .single_word(a.single_word)
        .lstrip(a.lstrip)
        .rstrip(a.rstrip)
}

fn read_normalizer(name: &'static str, value: &serde_json::Value) -> Result<Option<NormalizerWrapper>, TokenizerError> {
    const SUPPORTED: &str = "NFC, NFD, NFKC, NFKD, Lowercase, Sequence of these";
    if value.is_null() || value.get("normalizers").and_then(|v| v.as_array()).is_some_and(|v| v.is_empty()) {
        return Ok(None);
    }
    let step = StepRule { name, field: "normalizer", list: "normalizers", supported: SUPPORTED };
    step.check(value, &|kind| matches!(kind, "NFC" | "NFD" | "NFKC" | "NFKD" | "Lowercase"))?;
    serde_json::from_value(value.clone()).map(Some).map_err(|e| TokenizerError::invalid(name, "normalizer", e))
}

fn read_pre_tokenizer(name: &'static str, value: &serde_json::Value) -> Result<PreTokenizerWrapper, TokenizerError> {
    const SUPPORTED: &str = "ByteLevel, alone or as the last of a Sequence of Split, Digits, Punctuation, ByteLevel";
    let step = StepRule { name, field: "pre_tokenizer", list: "pretokenizers", supported: SUPPORTED };
    step.check(value, &|kind| matches!(kind, "ByteLevel" | "Split" | "Digits" | "Punctuation"))?;
    let last = value.get("pretokenizers").and_then(|v| v.as_array()).map_or(Some(value), |v| v.last());
    let last_kind = last.and_then(|v| v.get("type")).and_then(|v| v.as_str()).unwrap_or("none");
    if last_kind != "ByteLevel" {
        return Err(step.unsupported(last_kind));
    }
    serde_json::from_value(value.clone()).map_err(|e| TokenizerError::invalid(name, "pre_tokenizer", e))
}

/// Which steps a file may name. The library knows more, but some of them trust their parameters.
struct StepRule {
    name: &'static str,
    field: &'static str,
    /// The key of a `Sequence`'s steps.
    list: &'static str,
    supported: &'static str,
}

impl StepRule {
    fn check(&self, value: &serde_json::Value, allowed: &dyn Fn(&str) -> bool) -> Result<(), TokenizerError> {
        if value.to_string().len() > STEP_BYTES_MAX {
            let problem = format!("is longer than {STEP_BYTES_MAX} bytes");
            return Err(TokenizerError::invalid(self.name, self.field, problem));
        }
        match value.get("type").and_then(|v| v.as_str()) {
            Some("Sequence") => {
                let steps = value.get(self.list).and_then(|v| v.as_array()).map(Vec::as_slice).unwrap_or_default();
                steps.iter().try_for_each(|step| match step.get("type").and_then(|v| v.as_str()) {
                    Some(kind) if allowed(kind) => Ok(()),
                    kind => Err(self.unsupported(kind.unwrap_or("none"))),
                })
            }
            Some(kind) if allowed(kind) => Ok(()),
            kind => Err(self.unsupported(kind.unwrap_or("none"))),
        }
    }

    fn unsupported(&self, kind: &str) -> TokenizerError {
        TokenizerError::Unsupported {
            source_name: self.name,
            field: self.field,
            value: kind.chars().take(80).collect(),
            supported: self.supported,
        }
    }
}
