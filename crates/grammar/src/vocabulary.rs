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

pub(crate) struct Vocabulary {
    tokenizer: Arc<Tokenizer>,
    trie: TokTrie,
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
        Ok(Self { tokenizer, trie })
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
