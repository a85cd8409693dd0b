//! OpenAI's request bodies as questions.

pub mod chat;
pub mod completion;
mod format;
mod message;
mod sampling;
pub mod service;
mod tools;

use std::time::Instant;

use lingqu_serving::{Ask, FieldNames, Input, RequestError};
use lingqu_types::SamplingParams;

use crate::fields::Fields;
use service::FromHeaders;

/// What a request is read with, besides its body.
pub struct Context {
    /// The model's own sampling.
    pub default_sampling: SamplingParams,
    pub headers: FromHeaders,
    /// When the request came.
    pub arrived: Instant,
}

/// How the reply is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivery {
    pub stream: bool,
    /// End a stream with a chunk that tells the usage.
    pub include_usage: bool,
}

/// Reads `stream` and `stream_options`.
fn delivery(fields: &mut Fields) -> Result<Delivery, RequestError> {
    let stream = fields.flag("stream")?.unwrap_or(false);
    let include_usage = match fields.object("stream_options")? {
        Some(mut options) => options.flag("include_usage")?.unwrap_or(false),
        None => false,
    };
    Ok(Delivery { stream, include_usage })
}

/// Reads what both kinds of completion have, into a question without its input.
fn common(fields: &mut Fields, context: Context, input: &'static str) -> Result<Ask, RequestError> {
    let names = FieldNames { input, sampling_prefix: "" };
    let Context { default_sampling: defaults, headers, arrived } = context;
    Ok(Ask {
        model: fields.string("model")?.unwrap_or_default(),
        sampling: sampling::sampling(fields, &defaults)?,
        stop: sampling::stop_conditions(fields)?,
        stop_strings: sampling::stop_strings(fields)?,
        skip_special_tokens: fields.flag("skip_special_tokens")?.unwrap_or(true),
        format: format::format(fields)?,
        choices: fields.count("n")?.unwrap_or(1),
        service: service::service(fields, headers, arrived)?,
        ..Ask::new(Input::Tokens(Vec::new()), &defaults, names)
    })
}
