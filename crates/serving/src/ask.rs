//! What may be asked, whatever the protocol.

use std::sync::Arc;

use lingqu_types::sampling::InvalidParam;
use lingqu_types::{SamplingParams, Service, StopConditions};

use crate::RequestError;
use crate::input::Input;
use crate::tools::{Format, ToolChoice, Tools};

const STOP_STRINGS_MAX: usize = 16;
const STOP_STRING_BYTES_MAX: usize = 256;
const STOP_TOKEN_IDS_MAX: usize = 64;
const LOGIT_BIASES_MAX: usize = 1024;
const TENANT_BYTES_MAX: usize = 128;
/// Samples of one prompt.
pub const CHOICES_MAX: u32 = 16;

/// One question: a generation, or several of the same prompt.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Name of the model; empty: the one that is served.
    pub model: String,
    pub input: Input,
    /// Defaults of the model filled in.
    pub sampling: SamplingParams,
    pub stop: StopConditions,
    /// Generation ends before any of these would appear in the text.
    pub stop_strings: Vec<String>,
    pub logprobs: Option<u32>,
    pub prompt_logprobs: Option<u32>,
    /// Leave tokens like `<|im_end|>` out of the text.
    pub skip_special_tokens: bool,
    /// Tell a reasoning model's thinking apart from its answer.
    pub split_reasoning: bool,
    /// Holds for the answer, after a reasoning model's thinking.
    pub format: Option<Format>,
    pub tools: Option<Tools>,
    /// Name of the LoRA adapter that answers; `None`: what `model` names.
    pub adapter: Option<Arc<str>>,
    /// Samples: 1 to [`CHOICES_MAX`]. Sample `i` is drawn with the seed plus `i`.
    pub choices: u32,
    pub service: Service,
    pub names: FieldNames,
}

/// What the front end calls fields, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldNames {
    /// The input: `prompt`, `messages`, ….
    pub input: &'static str,
    /// Stands before the names of sampling parameters: `sampling.`, or nothing.
    pub sampling_prefix: &'static str,
}

impl FieldNames {
    pub(crate) fn sampling(self, field: &str) -> String {
        format!("{}{field}", self.sampling_prefix)
    }
}

impl Ask {
    /// A question that says nothing but its input.
    pub fn new(input: Input, defaults: &SamplingParams, names: FieldNames) -> Self {
        Self {
            model: String::new(),
            input,
            sampling: defaults.clone(),
            stop: StopConditions::default(),
            stop_strings: Vec::new(),
            logprobs: None,
            prompt_logprobs: None,
            skip_special_tokens: true,
            split_reasoning: true,
            format: None,
            tools: None,
            adapter: None,
            choices: 1,
            service: Service::default(),
            names,
        }
    }

    /// Checks all that can be told without the model.
    pub(crate) fn check(&self, top_logprobs_max: u32) -> Result<(), RequestError> {
        if self.sampling.logit_bias.len() > LOGIT_BIASES_MAX {
            let field = self.names.sampling("logit_bias");
            return Err(RequestError::too_many(&field, self.sampling.logit_bias.len(), LOGIT_BIASES_MAX));
        }
        let named = |InvalidParam { field, problem }| RequestError::invalid(&self.names.sampling(field), problem);
        self.sampling.validate().map_err(named)?;
        check_stop_strings(&self.stop_strings)?;
        if self.stop.stop_token_ids.len() > STOP_TOKEN_IDS_MAX {
            let count = self.stop.stop_token_ids.len();
            return Err(RequestError::too_many("stop_token_ids", count, STOP_TOKEN_IDS_MAX));
        }
        for (field, asked) in [("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)] {
            if let Some(asked) = asked.filter(|&asked| asked > top_logprobs_max) {
                return Err(RequestError::invalid(field, format_args!("{asked} is above {top_logprobs_max}")));
            }
        }
        if let Some(tools) = &self.tools {
            tools.check()?;
        }
        if let (Some(format), Some(Tools { choice: ToolChoice::Auto, .. })) = (&self.format, &self.tools) {
            let problem = "the model cannot choose between this form and a call: tool_choice must be another";
            return Err(RequestError::invalid(format.field, problem));
        }
        if self.service.tenant.len() > TENANT_BYTES_MAX {
            let problem = format!("{} bytes are more than {TENANT_BYTES_MAX}", self.service.tenant.len());
            return Err(RequestError::invalid("tenant", problem));
        }
        if self.choices == 0 || self.choices > CHOICES_MAX {
            return Err(RequestError::invalid("n", format_args!("{} is not in 1..={CHOICES_MAX}", self.choices)));
        }
        Ok(())
    }
}

fn check_stop_strings(stop: &[String]) -> Result<(), RequestError> {
    if stop.len() > STOP_STRINGS_MAX {
        return Err(RequestError::too_many("stop", stop.len(), STOP_STRINGS_MAX));
    }
    match stop.iter().position(|s| s.is_empty() || s.len() > STOP_STRING_BYTES_MAX) {
        None => Ok(()),
        Some(index) => {
            let problem = format!("{} bytes are not in 1..={STOP_STRING_BYTES_MAX}", stop[index].len());
            Err(RequestError::invalid(&format!("stop[{index}]"), problem))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_fields_are_named() {
        let check = |field: &str, edit: fn(&mut Ask)| {
            let names = FieldNames { input: "input", sampling_prefix: "sampling." };
            let mut ask = Ask::new(Input::Tokens(vec![1]), &SamplingParams::default(), names);
            assert_eq!(ask.check(8), Ok(()));
            edit(&mut ask);
            match ask.check(8).expect_err(field) {
                RequestError::Invalid { field: named, .. } => assert_eq!(named, field),
                other => panic!("{other:?}"),
            }
        };
        check("sampling.top_p", |a| a.sampling.top_p = 7.0);
        check("sampling.logit_bias", |a| a.sampling.logit_bias = vec![(1, 1.0); LOGIT_BIASES_MAX + 1]);
        check("stop", |a| a.stop_strings = vec!["x".into(); STOP_STRINGS_MAX + 1]);
        check("stop[1]", |a| a.stop_strings = vec!["x".into(), String::new()]);
        check("stop[0]", |a| a.stop_strings = vec!["x".repeat(STOP_STRING_BYTES_MAX + 1)]);
        check("stop_token_ids", |a| a.stop.stop_token_ids = vec![1; STOP_TOKEN_IDS_MAX + 1]);
        check("logprobs", |a| a.logprobs = Some(9));
        check("prompt_logprobs", |a| a.prompt_logprobs = Some(u32::MAX));
        check("tenant", |a| a.service.tenant = "x".repeat(TENANT_BYTES_MAX + 1).into());
        check("n", |a| a.choices = 0);
        check("n", |a| a.choices = CHOICES_MAX + 1);
    }
}
