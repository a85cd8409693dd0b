//! Text to tokens and back, chat templates, stop strings, and the split of thinking and tool calls from the answer.
//!
//! Must not know: models, devices, requests, wire formats, files' paths. Bytes and tables come in, ids and text go out.
//!
//! Start with [`Tokenizer`]. On the way in: [`ChatTemplate::render`], then [`Tokenizer::encode`]. On the way out, per
//! token: [`DecodeStream`] (whole characters only), then [`ReasoningSplitter`], [`StopMatcher`] and [`ToolCallParser`];
//! each gives the same text however its input is cut, and each is to be finished at the end.
//!
//! Only byte-level BPE is read: DeepSeek, Qwen and Llama 3 all use it, and its tokens are exact bytes.

#![forbid(unsafe_code)]

mod chat;
mod decode;
mod encoder;
mod error;
mod gguf;
mod huggingface;
mod reasoning;
mod stop;
mod tokenizer;
mod tools;
mod vocabulary;

pub use chat::{ChatMessage, ChatTemplate, ChatTemplateError, RenderOptions};
pub use decode::DecodeStream;
pub use error::TokenizerError;
pub use gguf::GgufVocabulary;
pub use huggingface::HuggingFaceFiles;
pub use reasoning::{ReasoningSplitter, SplitText};
pub use stop::{StopError, StopMatcher, StopOutput};
pub use tokenizer::{EncodeOptions, Tokenizer};
pub use tools::{ToolCallDelta, ToolCallParser, ToolFormat, ToolText};
