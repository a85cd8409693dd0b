//! The model's vocabulary as llguidance walks it: a tree of bytes.

use std::sync::Arc;

use lingqu_tokenizer::{EncodeOptions, Tokenizer};
use lingqu_types::TokenId;
use toktrie::{TokRxInfo, TokTrie, TokenizerEnv};

use crate::GrammarError;

/// What llguidance's tree can hold of one token: its bytes, less the mark of special tokens.
const TOKEN_BYTES_MAX: usize = 1000;
/// Its nodes name tokens in 24 bits.
const VOCAB_MAX: usize = 1 << 21;

/// White space of this many bytes may stand between thinking and answer, per token.
const SPACE_BYTES_MAX: usize = 4;

pub(crate) struct Vocabulary {
    tokenizer: Arc<Tokenizer>,
    trie: TokTrie,
    /// A bit for each token that may come where nothing is said: not padding, and no end of the reply.
    free: Vec<u64>,
    /// Tokens of nothing but a little white space, ascending.
    spaces: Vec<TokenId>,
}

impl Vocabulary {
    /// `vocab` is the number of the model's logits. Ids that stand for nothing can never come; special tokens come only
    /// where a grammar names them, because text cannot produce them.
    pub fn new(tokenizer: Arc<Tokenizer>, eos_ids: &[TokenId], vocab: usize) -> Result<Self, GrammarError> {
        let wrong = |problem: String| Err(GrammarError::Vocabulary { problem });
        if vocab == 0 || vocab > VOCAB_MAX {
            return wrong(format!("{vocab} tokens are not in 1..={VOCAB_MAX}"));
        }
        if let Some(id) = eos_ids.iter().find(|&&id| id as usize >= vocab) {
            return wrong(format!("token {id}, which ends a generation, is not below {vocab}"));
        }
        let words: Vec<Vec<u8>> = (0..vocab as TokenId)
            .map(|id| match tokenizer.token_bytes(id) {
                Some(bytes) if bytes.len() > TOKEN_BYTES_MAX => Vec::new(),
                Some(bytes) if tokenizer.is_special(id) || eos_ids.contains(&id) => {
                    [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes.as_slice()].concat()
                }
                Some(bytes) => bytes,
                None => Vec::new(),
            })
            .collect();
        let eos = eos_ids.first().copied().unwrap_or(toktrie::INVALID_TOKEN);
        let trie = TokTrie::from(&TokRxInfo::new(vocab as u32, eos), &words);
        let trie = if eos_ids.is_empty() { trie } else { trie.with_eos_tokens(eos_ids) };
        let mut free = vec![0; vocab.div_ceil(64)];
        let mut spaces = Vec::new();
        for (id, word) in words.iter().enumerate().filter(|(_, word)| !word.is_empty()) {
            if !eos_ids.contains(&(id as TokenId)) {
                free[id / 64] |= 1 << (id % 64);
            }
            if word.len() <= SPACE_BYTES_MAX && word.iter().all(u8::is_ascii_whitespace) {
                spaces.push(id as TokenId);
            }
        }
        Ok(Self { tokenizer, trie, free, spaces })
    }

    /// The number of the model's logits.
    pub fn len(&self) -> usize {
        self.trie.vocab_size()
    }

    /// What a token is in text; empty for padding.
    pub fn bytes(&self, token: TokenId) -> &[u8] {
        let word = if (token as usize) < self.len() { self.trie.token(token) } else { &[] };
        match word {
            // The byte 0xff alone is a token of its own.
            [TokTrie::SPECIAL_TOKEN_MARKER, bytes @ ..] if !bytes.is_empty() => bytes,
            bytes => bytes,
        }
    }

    pub fn free(&self) -> &[u64] {
        &self.free
    }

    pub fn spaces(&self) -> &[TokenId] {
        &self.spaces
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, text: &[u8]) -> Vec<TokenId> {
        let tokens = self.trie.tokenize_with_greedy_fallback(text, |text| {
            self.tokenizer.encode(text, EncodeOptions::default()).unwrap_or_default()
        });
        // A normaliser may change the text (Qwen's NFC): what is forced must be these bytes.
        match self.trie.decode(&tokens) == text {
            true => tokens,
            false => self.trie.greedy_tokenize(text),
        }
    }
}
