//! The tokenizer of one model.

use lingqu_types::TokenId;

use crate::chat::ChatTemplate;
use crate::encoder::{Encoder, EncoderParts};
use crate::error::TokenizerError;
use crate::vocabulary::{TokenKind, Vocabulary};

/// Text to token ids and back, with the model's chat template. Immutable; `Send + Sync`; share it in an `Arc`.
pub struct Tokenizer {
    encoder: Encoder,
    vocabulary: Vocabulary,
    special: SpecialTokens,
    chat_template: Option<ChatTemplate>,
}

/// How a text is encoded. The default is a bare text from a client: nothing added, nothing parsed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Put the model's own tokens around the text (beginning of sequence), where it has any. Off for a rendered chat:
    /// templates write their own.
    pub add_special_tokens: bool,
    /// Read special tokens written out in the text (`<｜User｜>`) as those tokens. On for a rendered chat. Off, they
    /// are plain text, but tokens that are added and not special (`<think>`) are found all the same, as in Hugging
    /// Face.
    pub parse_special: bool,
}

impl EncodeOptions {
    /// For a chat rendered by the model's template.
    pub const CHAT: Self = Self { add_special_tokens: false, parse_special: true };
    /// As Hugging Face's `encode(text)`: tokens added, special ones parsed.
    pub const PROMPT: Self = Self { add_special_tokens: true, parse_special: true };
}

/// Special tokens as contents and ids.
#[derive(Default)]
pub(crate) struct SpecialTokens {
    pub bos: Option<(String, TokenId)>,
    pub eos: Option<(String, TokenId)>,
    pub unknown: Option<(String, TokenId)>,
    pub pad: Option<(String, TokenId)>,
    /// All that end a generation; `eos` first.
    pub eos_ids: Vec<TokenId>,
    /// Put before and after a text.
    pub prefix: Vec<TokenId>,
    pub suffix: Vec<TokenId>,
}

pub(crate) struct TokenizerParts {
    pub encoder: EncoderParts,
    pub special: SpecialTokens,
    /// Padding ids of a GGUF vocabulary: in the table, but no token.
    pub absent: Vec<TokenId>,
    pub chat_template: Option<ChatTemplate>,
}

impl Tokenizer {
    pub(crate) fn from_parts(parts: TokenizerParts) -> Result<Self, TokenizerError> {
        let source_name = parts.encoder.source_name;
        let (encoder, vocabulary) = parts.encoder.build(&parts.absent)?;
        let special = parts.special;
        for &id in special.eos_ids.iter().chain(&special.prefix).chain(&special.suffix) {
            if id as usize >= vocabulary.len() {
                let problem = format!("{id} is not below the vocabulary size {}", vocabulary.len());
                return Err(TokenizerError::invalid(source_name, "special token id", problem));
            }
        }
        let chat_template = parts.chat_template.map(|template| {
            let content = |token: &Option<(String, TokenId)>| token.as_ref().map(|(content, _)| content.clone());
            template.with_special_tokens(&[
                ("bos_token", content(&special.bos)),
                ("eos_token", content(&special.eos)),
                ("unk_token", content(&special.unknown)),
                ("pad_token", content(&special.pad)),
            ])
        });
        Ok(Self { encoder, vocabulary, special, chat_template })
    }

    /// The ids of a text. Any text can be encoded; white space and bytes are kept exactly, but for a normaliser that
    /// the model's own tokenizer applies (Qwen: NFC).
    ///
    /// # Errors
    /// Texts of more than 32 MiB.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<TokenId>, TokenizerError> {
        let ids = self.encoder.encode(text, options.parse_special)?;
        if !options.add_special_tokens || (self.special.prefix.is_empty() && self.special.suffix.is_empty()) {
            return Ok(ids);
        }
        Ok([self.special.prefix.as_slice(), &ids, &self.special.suffix].concat())
    }

    /// The text of ids. Bytes that are not UTF-8 become U+FFFD. Ids that the tokenizer lacks but a padded embedding
    /// may have stand for nothing.
    pub fn decode(&self, ids: &[TokenId], skip_special: bool) -> String {
        let mut bytes = Vec::new();
        for &id in ids {
            if !(skip_special && self.is_special(id)) {
                bytes.extend_from_slice(self.token_slice(id).unwrap_or_default());
            }
        }
        match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(e) => String::from_utf8_lossy(e.as_bytes()).into_owned(),
        }
    }

    /// The bytes that a token stands for: maybe a part of a character. `None`: no such token.
    pub fn token_bytes(&self, id: TokenId) -> Option<Vec<u8>> {
        self.token_slice(id).map(<[u8]>::to_vec)
    }

    pub(crate) fn token_slice(&self, id: TokenId) -> Option<&[u8]> {
        self.vocabulary.token_bytes(id)
    }

    /// One more than the largest id. A model's logits may be longer: embeddings are padded.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.len()
    }

    /// Beginning of sequence.
    pub fn bos(&self) -> Option<TokenId> {
        self.special.bos.as_ref().map(|&(_, id)| id)
    }

    /// The tokens that end a generation. Empty if the files name none.
    pub fn eos_ids(&self) -> &[TokenId] {
        &self.special.eos_ids
    }

    /// Whether `add_special_tokens` puts the beginning-of-sequence token first.
    pub fn adds_bos(&self) -> bool {
        self.bos().is_some_and(|bos| self.special.prefix.contains(&bos))
    }

    /// The id of a token by its content as the vocabulary spells it (`Ġthe`, `<think>`).
    pub fn token_id(&self, content: &str) -> Option<TokenId> {
        self.encoder.token_id(content)
    }

    /// Control tokens: left out of text where `skip_special` is set.
    pub fn is_special(&self, id: TokenId) -> bool {
        self.vocabulary.kind(id) == TokenKind::Special
    }

    /// How chats are written for this model; `None`: it has no template, so it cannot chat.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("bos", &self.bos())
            .field("eos_ids", &self.eos_ids())
            .field("chat_template", &self.chat_template.is_some())
            .finish_non_exhaustive()
    }
}
