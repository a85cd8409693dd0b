//! Specifications to constraints, once per model.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use lingqu_sampler::Constraint;
use lingqu_tokenizer::Tokenizer;
use lingqu_types::TokenId;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::TokEnv;
use llguidance::{Matcher, ParserFactory};

use crate::constraint::{GrammarConstraint, Phase};
use crate::limits::{self, COMPILE_STACK_BYTES, KEPT_ENDS_MAX, KEPT_GRAMMARS_MAX};
use crate::thinking::Thinking;
use crate::translate::{invalid, translate};
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
    grammars: Mutex<VecDeque<(String, Matcher)>>,
    /// The same of ways to think.
    ends: Mutex<VecDeque<(GrammarStart, Arc<Thinking>)>>,
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
            ParserFactory::new_simple(&env).map_err(|e| GrammarError::Vocabulary { problem: brief(&e.to_string()) })?;
        factory.quiet();
        *factory.limits_mut() = limits::parser();
        Ok(Self { vocabulary, factory, grammars: Mutex::default(), ends: Mutex::default() })
    }

    /// A constraint for one generation. One that was compiled lately costs a copy.
    ///
    /// # Errors
    /// What is wrong with the client's specification.
    pub fn compile(&self, spec: &GrammarSpec, start: &GrammarStart) -> Result<Box<dyn Constraint>, GrammarError> {
        let constraint = GrammarConstraint::new(self.matcher(spec)?, self.vocabulary.clone());
        let phase = match start {
            GrammarStart::AtOnce => return Ok(Box::new(constraint)),
            GrammarStart::AfterReasoning { .. } => Phase::Thinking { matched: 0 },
            GrammarStart::MaybeReasoning { .. } => Phase::MayOpen,
        };
        Ok(Box::new(constraint.after(self.thinking(start)?, phase)))
    }

    fn matcher(&self, spec: &GrammarSpec) -> Result<Matcher, GrammarError> {
        let grammar = translate(spec, &self.vocabulary)?;
        let key = serde_json::to_string(&grammar).expect("strings and JSON");
        if let Some(kept) = latest(&mut lock(&self.grammars), |(other, _)| *other == key) {
            return Ok(kept.1.deep_clone());
        }
        let matcher = self.parse(grammar).map_err(|problem| invalid(spec.what(), problem))?;
        let mut kept = lock(&self.grammars);
        kept.truncate(KEPT_GRAMMARS_MAX - 1);
        kept.push_front((key, matcher.deep_clone()));
        Ok(matcher)
    }

    /// On a thread whose stack suffices for the deepest specification that the limits let through.
    fn parse(&self, grammar: TopLevelGrammar) -> Result<Matcher, String> {
        let parse = || {
            let matcher = Matcher::new(self.factory.create_parser(grammar));
            match matcher.get_error() {
                Some(problem) => Err(brief(&problem)),
                None => Ok(matcher),
            }
        };
        thread::scope(|scope| {
            let builder = thread::Builder::new().name("grammar".into()).stack_size(COMPILE_STACK_BYTES);
            let thread = builder.spawn_scoped(scope, parse).map_err(|e| e.to_string())?;
            thread.join().unwrap_or_else(|_| Err("cannot be compiled".into()))
        })
    }

    fn thinking(&self, start: &GrammarStart) -> Result<Arc<Thinking>, GrammarError> {
        if let Some((_, kept)) = latest(&mut lock(&self.ends), |(other, _)| other == start) {
            return Ok(kept.clone());
        }
        let (open, end) = match start {
            GrammarStart::MaybeReasoning { open, end } => (self.vocabulary.tokenizer().token_id(open), end.as_str()),
            GrammarStart::AfterReasoning { end } => (None, end.as_str()),
            GrammarStart::AtOnce => (None, ""),
        };
        let thinking = Arc::new(Thinking::new(&self.vocabulary, open, end)?);
        let mut kept = lock(&self.ends);
        kept.truncate(KEPT_ENDS_MAX - 1);
        kept.push_front((start.clone(), thinking.clone()));
        Ok(thinking)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Finds an entry and puts it first.
fn latest<T>(kept: &mut VecDeque<T>, is_it: impl FnMut(&T) -> bool) -> Option<&T> {
    let at = kept.iter().position(is_it)?;
    let entry = kept.remove(at)?;
    kept.push_front(entry);
    kept.front()
}

/// The beginning of a message, without our own backtraces.
pub(crate) fn brief(problem: &str) -> String {
    let text = problem.split("\n<").next().unwrap_or_default();
    let end = (0..=PROBLEM_BYTES_MAX.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    text[..end].trim_end().to_owned()
}
