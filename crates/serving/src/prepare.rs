//! From a question to what the engine and its text side are given.

use lingqu_engine::text::{ReasoningMode, TextOptions};
use lingqu_grammar::{GrammarError, GrammarStart};
use lingqu_sampler::Constraint;
use lingqu_tokenizer::{ReasoningSplitter, Tokenizer};
use lingqu_types::GenerateRequest;

use crate::ask::Ask;
use crate::model::Served;
use crate::tools::Format;
use crate::{Encoded, RequestError};

/// A question in the engine's terms.
pub(crate) struct Prepared {
    pub request: GenerateRequest,
    pub text: TextOptions,
    /// One for each sample, if the answer must have a form.
    pub constraints: Vec<Box<dyn Constraint>>,
}

/// Checks all that can be told without the engine, cheapest first, then encodes the input and compiles the grammar.
pub(crate) async fn prepare(served: &Served, ask: Ask) -> Result<Prepared, RequestError> {
    let of_model = served.adapter(&ask.model)?;
    if let Some(adapter) = &ask.adapter {
        served.check_adapter("adapter", adapter)?;
    }
    ask.check(served.model.engine.limits().top_logprobs_max)?;
    let tokenizer = &served.model.tokenizer;
    let tools = ask.tools.as_ref().map(|tools| tools.format(tokenizer.chat_template())).transpose()?;
    let calls = ask.tools.as_ref().zip(tools).and_then(|(tools, format)| tools.grammar(format));
    let format = calls.map(|spec| Format { spec, field: "tools" }).or(ask.format);
    let (input, field) = (ask.input, ask.names.input);
    let encoded = match input.is_encoded() {
        true => input.encode(tokenizer, field)?,
        false => served.off_thread("tokenizing", move |t| input.encode(t, field)).await?,
    };
    let Encoded { ids, text: prompt } = encoded;
    let splitter = splitter(tokenizer, &prompt);
    let constraints = match format {
        Some(format) => constraints(served, format, &splitter, ask.choices).await?,
        None => Vec::new(),
    };
    let request = GenerateRequest {
        sampling: ask.sampling,
        stop: ask.stop,
        logprobs: ask.logprobs,
        prompt_logprobs: ask.prompt_logprobs,
        service: ask.service,
        adapter: ask.adapter.or(of_model),
        ..GenerateRequest::new(ids)
    };
    let text = TextOptions {
        stop_strings: ask.stop_strings,
        skip_special_tokens: ask.skip_special_tokens,
        reasoning: if ask.split_reasoning { ReasoningMode::Split(splitter) } else { ReasoningMode::Off },
        tools,
    };
    Ok(Prepared { request, text, constraints })
}

/// How the reply to this prompt is split. The model's template tells whether it thinks, however the prompt was made.
fn splitter(tokenizer: &Tokenizer, prompt: &str) -> ReasoningSplitter {
    let template = tokenizer.chat_template();
    template.map_or_else(ReasoningSplitter::pass_through, |t| ReasoningSplitter::for_chat(t, prompt))
}

/// A grammar's constraints, one for each sample. They begin after the thinking, whether it is told apart or not.
async fn constraints(
    served: &Served,
    format: Format,
    splitter: &ReasoningSplitter,
    choices: u32,
) -> Result<Vec<Box<dyn Constraint>>, RequestError> {
    let start = GrammarStart::for_reply(splitter);
    let Format { spec, field } = format;
    let compile = move |compiler: &lingqu_grammar::GrammarCompiler| {
        let constraint = |_| compiler.compile(&spec, &start).map_err(|error| grammar_error(field, error));
        (0..choices).map(constraint).collect()
    };
    served.with_grammars(compile).await
}

fn grammar_error(field: &'static str, error: GrammarError) -> RequestError {
    match error {
        GrammarError::Vocabulary { .. } => RequestError::internal_task("compiling a grammar", error),
        GrammarError::Invalid { what, problem } if what == field => RequestError::invalid(field, problem),
        error => RequestError::invalid(field, error),
    }
}
