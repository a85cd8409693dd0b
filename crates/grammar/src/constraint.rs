//! One generation under a grammar.

use std::sync::Arc;

use lingqu_sampler::{Constraint, TokenMask};
use lingqu_types::TokenId;
use llguidance::Matcher;

use crate::compiler::brief;
use crate::thinking::Thinking;
use crate::vocabulary::Vocabulary;

/// Tokens of white space that may come between the thinking and what the grammar holds.
const GAP_TOKENS_MAX: u8 = 2;

pub(crate) struct GrammarConstraint {
    matcher: Matcher,
    vocabulary: Arc<Vocabulary>,
    thinking: Option<Arc<Thinking>>,
    phase: Phase,
    /// The phases before each of the tokens that came before the grammar's own.
    before: Vec<Phase>,
    /// The phase in which the grammar's first token came.
    until: Phase,
    grammar_tokens: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The token that opens the thinking may come, or the grammar's first.
    MayOpen,
    /// So many bytes of the text that ends the thinking have come.
    Thinking {
        matched: u16,
    },
    /// The thinking is over, and so many tokens of white space have come.
    Gap {
        tokens: u8,
    },
    Grammar,
}

impl GrammarConstraint {
    pub fn new(matcher: Matcher, vocabulary: Arc<Vocabulary>) -> Self {
        let phase = Phase::Grammar;
        Self { matcher, vocabulary, thinking: None, phase, before: Vec::new(), until: phase, grammar_tokens: 0 }
    }

    /// The grammar begins behind the thinking, which begins in this phase.
    pub fn after(self, thinking: Arc<Thinking>, phase: Phase) -> Self {
        Self { thinking: Some(thinking), phase, ..self }
    }

    fn allow_grammar(&mut self, mask: &mut TokenMask) -> Result<(), String> {
        let allowed = self.matcher.compute_mask_or_eos().map_err(|e| brief(&e.to_string()))?;
        for (word, pair) in mask.words_mut().iter_mut().zip(allowed.as_slice().chunks(2)) {
            *word |= u64::from(pair[0]) | u64::from(pair.get(1).copied().unwrap_or(0)) << 32;
        }
        Ok(())
    }
}

impl Constraint for GrammarConstraint {
    fn allow(&mut self, mask: &mut TokenMask) -> Result<(), String> {
        match (self.phase, &self.thinking) {
            (Phase::Thinking { matched }, Some(thinking)) => {
                thinking.allow(&self.vocabulary, matched, mask);
                return Ok(());
            }
            (Phase::MayOpen, Some(thinking)) => {
                if let Some(open) = thinking.open() {
                    mask.allow(open);
                }
            }
            (Phase::Gap { tokens }, _) if tokens < GAP_TOKENS_MAX => {
                self.vocabulary.spaces().iter().for_each(|&space| mask.allow(space));
            }
            _ => {}
        }
        self.allow_grammar(mask)
    }

    fn accept(&mut self, token: TokenId) -> Result<(), String> {
        let next = match (self.phase, &self.thinking) {
            (Phase::Thinking { matched }, Some(thinking)) => Some(thinking.step(&self.vocabulary, matched, token)?),
            (Phase::MayOpen, Some(thinking)) if thinking.open() == Some(token) => Some(Phase::Thinking { matched: 0 }),
            (Phase::Gap { tokens }, _)
                if tokens < GAP_TOKENS_MAX && self.vocabulary.spaces().binary_search(&token).is_ok() =>
            {
                Some(Phase::Gap { tokens: tokens + 1 })
            }
            _ => None,
        };
        if let Some(next) = next {
            self.before.push(self.phase);
            self.phase = next;
            return Ok(());
        }
        self.matcher.consume_token(token).map_err(|e| brief(&e.to_string()))?;
        if self.grammar_tokens == 0 {
            self.until = std::mem::replace(&mut self.phase, Phase::Grammar);
        }
        self.grammar_tokens += 1;
        Ok(())
    }

    fn is_over(&self) -> bool {
        !matches!(self.phase, Phase::Thinking { .. }) && self.matcher.is_stopped()
    }

    fn roll_back(&mut self, tokens: usize) -> Result<(), String> {
        let of_grammar = tokens.min(self.grammar_tokens);
        let of_before = tokens - of_grammar;
        if of_before > self.before.len() {
            return Err(format!("{tokens} tokens to take back are more than came"));
        }
        if of_grammar > 0 {
            self.matcher.rollback(of_grammar).map_err(|e| brief(&e.to_string()))?;
            self.grammar_tokens -= of_grammar;
            if self.grammar_tokens == 0 {
                self.phase = self.until;
            }
        }
        if of_before > 0 {
            let left = self.before.len() - of_before;
            self.phase = self.before[left];
            self.before.truncate(left);
        }
        Ok(())
    }
}
