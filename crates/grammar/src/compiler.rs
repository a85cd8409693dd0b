//! Specifications to constraints, once per model.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use lingqu_sampler::Constraint;
use lingqu_tokenizer::Tokenizer;
use lingqu_types::TokenId;
use llguidance::api::ParserLimits;
use llguidance::toktrie::TokEnv;
use llguidance::{Matcher, ParserFactory};

use crate::constraint::GrammarConstraint;
use crate::limits::KEPT_GRAMMARS_MAX;
use crate::translate::translate;
use crate::vocabulary::Vocabulary;
use crate::{GrammarError, GrammarSpec, GrammarStart};

/// Bytes of what llguidance says about a specification that go to its client.
const PROBLEM_BYTES_MAX: usize = 400;

/// Makes constraints for one model. `Send + Sync`; share it in an `Arc`, and call it away from async threads: a large
/// schema takes milliseconds.
pub struct GrammarCompiler {
    vocabulary: Arc<Vocabulary>,
    factory: ParserFactory,
    /// What was compiled last, latest first: specifications come again.
    kept: Mutex<VecDeque<(String, Matcher)>>,
}

impl GrammarCompiler {
    /// `eos_ids` may end a reply where its grammar may end; `vocab` is the number of the model's logits, of which the
    /// tokenizer may know fewer.
    ///
    /// # Errors
    /// [`GrammarError::Vocabulary`].
    pub fn new(tokenizer: Arc<Tokenizer>, eos_ids: &[TokenId], vocab: usize) -> Result<Self, GrammarError> {
        let vocabulary = Arc::new(Vocabulary::new(tokenizer, eos_ids, vocab)?);
        let env: TokEnv = vocabulary.clone();
        let mut factory =
            ParserFactory::new_simple(&env).map_err(|e| GrammarError::Vocabulary { problem: e.to_string() })?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits { verbose_errors: false, ..ParserLimits::default() };
        Ok(Self { vocabulary, factory, kept: Mutex::default() })
    }

    /// # Errors
    /// What the client's specification lacks.
    pub fn compile(&self, spec: &GrammarSpec, start: &GrammarStart) -> Result<Box<dyn Constraint>, GrammarError> {
        let matcher = self.matcher(spec)?;
        Ok(Box::new(GrammarConstraint::new(matcher, self.vocabulary.clone(), start)))
    }

    fn matcher(&self, spec: &GrammarSpec) -> Result<Matcher, GrammarError> {
        let grammar = translate(spec, &self.vocabulary)?;
        let key = serde_json::to_string(&grammar).expect("strings and JSON");
        let lock = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut kept = lock();
            if let Some(at) = kept.iter().position(|(other, _)| *other == key) {
                let entry = kept.remove(at).expect("found there");
                let matcher = entry.1.deep_clone();
                kept.push_front(entry);
                return Ok(matcher);
            }
        }
        let parser = self.factory.create_parser(grammar);
        let matcher = Matcher::new(parser);
        if let Some(problem) = matcher.get_error() {
            return Err(crate::translate::invalid(spec.what(), brief(&problem)));
        }
        let mut kept = lock();
        kept.truncate(KEPT_GRAMMARS_MAX - 1);
        kept.push_front((key, matcher.deep_clone()));
        Ok(matcher)
    }
}

/// The beginning of a message, without our own backtraces.
pub(crate) fn brief(problem: &str) -> String {
    let text = problem.split("\n<").next().unwrap_or_default();
    let end = (0..=PROBLEM_BYTES_MAX.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    text[..end].trim_end().to_owned()
}
