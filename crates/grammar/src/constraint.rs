//! One generation under a grammar.

use std::sync::Arc;

use lingqu_sampler::{Constraint, TokenMask};
use lingqu_types::TokenId;
use llguidance::Matcher;

use crate::GrammarStart;
use crate::compiler::brief;
use crate::vocabulary::Vocabulary;

pub(crate) struct GrammarConstraint {
    matcher: Matcher,
}

impl GrammarConstraint {
    pub fn new(matcher: Matcher, _vocabulary: Arc<Vocabulary>, _start: &GrammarStart) -> Self {
        Self { matcher }
    }
}

impl Constraint for GrammarConstraint {
    fn allow(&mut self, mask: &mut TokenMask) -> Result<(), String> {
        let allowed = self.matcher.compute_mask_or_eos().map_err(|e| brief(&e.to_string()))?;
        for (word, pair) in mask.words_mut().iter_mut().zip(allowed.as_slice().chunks(2)) {
            *word |= u64::from(pair[0]) | u64::from(pair.get(1).copied().unwrap_or(0)) << 32;
        }
        Ok(())
    }

    fn accept(&mut self, token: TokenId) -> Result<(), String> {
        self.matcher.consume_token(token).map_err(|e| brief(&e.to_string()))
    }

    fn is_over(&self) -> bool {
        self.matcher.is_stopped()
    }

    fn roll_back(&mut self, tokens: usize) -> Result<(), String> {
        self.matcher.rollback(tokens).map_err(|e| brief(&e.to_string()))
    }
}
