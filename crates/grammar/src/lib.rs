//! Structured output: grammars, JSON schemas, regular expressions and lists of choices that say which tokens may come.
//!
//! Must not know: models, requests, wire formats. A [`GrammarSpec`] comes in; what goes out is a
//! [`Constraint`](lingqu_sampler::Constraint), which the engine asks before each draw. The parsing is llguidance's: an
//! Earley parser over derivatives of regular expressions, and a walk over the vocabulary as a tree of bytes.
//!
//! Specifications come from clients, so their work is bounded: bytes before anything is parsed, and llguidance's own
//! limits on lexer, grammar and mask; see [`limits`]. Start with [`GrammarCompiler`].

#![forbid(unsafe_code)]

mod compiler;
mod constraint;
mod error;
pub mod limits;
mod spec;
mod thinking;
mod translate;
mod vocabulary;

pub use compiler::GrammarCompiler;
pub use error::GrammarError;
pub use spec::{GrammarSpec, GrammarStart, ToolCalls, ToolFunction, ToolsGrammar};
