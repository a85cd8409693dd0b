//! One request from its tensors to its last response.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::try_join_all;
use lingqu_engine::Finished;
use lingqu_proto::inference::infer_parameter::ParameterChoice;
use lingqu_proto::inference::{InferParameter, ModelInferRequest, ModelInferResponse};
use lingqu_serving::reply::ReplyEvent;
use lingqu_serving::{Ask, Reply, Served};
use lingqu_types::{FinishReason, TokenOutput, Usage};
use tonic::Status;

use super::model::check_version;
use super::options::Options;
use super::outputs::{self, Elements, Layout, Wanted};
use super::tensor::{Tensor, Value, parameter, tensors};
use crate::convert::service::FromHeaders;
use crate::status::{invalid, status, too_many};

/// Prompts of one request.
pub const PROMPTS_MAX: usize = 32;
const PARAMETERS_MAX: usize = 64;
const ID_BYTES_MAX: usize = 256;
/// Of a response: whether it is its request's last.
const FINAL_RESPONSE: &str = "triton_final_response";
const TEXT_INPUT: &str = "text_input";

/// A request that has been read.
#[derive(Debug)]
pub struct Job {
    id: String,
    model: String,
    layout: Layout,
    /// Answered piece by piece; of one prompt then.
    pub stream: bool,
    prompts: Vec<Prompt>,
}

#[derive(Debug)]
struct Prompt {
    ask: Ask,
    /// Goes before the answer.
    echo: String,
}

/// Reads a request.
pub fn job(served: &Served, request: ModelInferRequest, headers: &FromHeaders) -> Result<Job, Status> {
    let ModelInferRequest { model_name, model_version, id, parameters, inputs, outputs, raw_input_contents } = request;
    served.check_name(&model_name).map_err(status)?;
    check_version("model_version", &model_version)?;
    if id.len() > ID_BYTES_MAX {
        return Err(invalid("id", format_args!("{} bytes are more than {ID_BYTES_MAX}", id.len())));
    }
    if parameters.len() > PARAMETERS_MAX {
        return Err(too_many("parameters", parameters.len(), PARAMETERS_MAX));
    }
    let raw = !raw_input_contents.is_empty();
    let mut inputs = tensors(inputs, raw_input_contents)?;
    let texts = inputs.iter().position(|input| input.name == TEXT_INPUT);
    let texts = inputs.swap_remove(texts.ok_or_else(|| invalid(TEXT_INPUT, "is missing"))?);
    let count = texts.values.len();
    if count > PROMPTS_MAX {
        return Err(too_many(TEXT_INPUT, count, PROMPTS_MAX));
    }

    let model = if model_name.is_empty() { served.model.card.name.clone() } else { model_name.clone() };
    let mut common = Options::new(model_name, &served.model.default_sampling);
    for (name, value) in parameters {
        let value = parameter(value).ok_or_else(|| invalid(&name, "holds no value"))?;
        common.set(&name, &[value])?;
    }
    let mut options = vec![common; count];
    for input in &inputs {
        for (index, options) in options.iter_mut().enumerate() {
            options.set(&input.name, values_of(input, index, count)?)?;
        }
    }
    options.iter_mut().for_each(|options| options.heed(headers));
    let stream = options.iter().any(|o| o.stream);
    if stream && count > 1 {
        return Err(invalid(TEXT_INPUT, "a request that streams has one prompt"));
    }
    let wanted = Wanted::new(&outputs, &options[0].returns)?;
    let shape = texts.shape.iter().map(|&size| size as i64).collect();
    let layout = Layout { wanted, raw, shape };
    let prompts = texts.values.into_iter().zip(options).map(|(text, options)| prompt(text, options, &layout));
    Ok(Job { id, model, stream, prompts: prompts.collect::<Result<_, _>>()?, layout })
}

/// What an input says of one prompt of several: its row, or its element, or what is said to all.
fn values_of(input: &Tensor, index: usize, count: usize) -> Result<&[Value], Status> {
    let Tensor { name, shape, values } = input;
    match shape[..] {
        [rows, columns] if rows == count => Ok(&values[index * columns..(index + 1) * columns]),
        [1, _] | [] => Ok(values),
        [_, _] => Err(invalid(name, format_args!("{} rows for {count} prompts", shape[0]))),
        // Of several prompts each has its own; lists for several prompts have rows.
        [elements] if count > 1 && elements == count => Ok(&values[index..=index]),
        _ => Ok(values),
    }
}

fn prompt(text: Value, mut options: Options, layout: &Layout) -> Result<Prompt, Status> {
    let Value::Text(text) = text else { return Err(invalid(TEXT_INPUT, "its datatype is BYTES")) };
    if layout.wanted.has(outputs::CUMULATIVE_LOGPROB) {
        options.need_logprobs();
    }
    let echo = options.echo.unwrap_or(false);
    if echo && options.stream {
        return Err(invalid("exclude_input_in_output", "a request that streams cannot have it false"));
    }
    let echo = if echo { text.clone() } else { String::new() };
    Ok(Prompt { ask: options.ask(text), echo })
}

/// What became of a prompt so far, or in one piece.
#[derive(Default)]
struct Answer {
    input_tokens: u32,
    text: String,
    reasoning: String,
    /// Of `text` and `reasoning`.
    output_tokens: u32,
    logprob: f32,
    finished: Option<Finished>,
}

impl Answer {
    fn add(&mut self, text: &str, reasoning: &str, tokens: &[TokenOutput]) {
        self.text += text;
        self.reasoning += reasoning;
        self.output_tokens += tokens.len() as u32;
        self.logprob += tokens.iter().filter_map(|t| t.logprob).sum::<f32>();
    }
}

impl Job {
    /// Prompts asked.
    pub fn prompt_count(&self) -> usize {
        self.prompts.len()
    }

    /// Asks all prompts at once and answers with all of them.
    ///
    /// # Errors
    /// The first that any prompt meets; RESOURCE_EXHAUSTED for answers of more than `bytes_max` together.
    pub async fn answer(self, served: &Served, bytes_max: usize) -> Result<ModelInferResponse, Status> {
        let Self { id, model, layout, prompts, .. } = self;
        let mut replies = Vec::with_capacity(prompts.len());
        for Prompt { ask, echo } in prompts {
            replies.push((Reply::start(served, ask).await.map_err(status)?, echo));
        }
        let request_id = replies[0].0.id().to_string();
        let bytes = AtomicUsize::new(0);
        let budget = Budget { bytes: &bytes, bytes_max };
        let answers = replies.into_iter().map(|(reply, echo)| whole(reply, echo, budget));
        let answers = try_join_all(answers).await?;
        let head = Head { id, model, layout };
        let mut response = head.response(answers);
        response.parameters.insert("request_id".into(), text_parameter(request_id));
        Ok(response)
    }

    /// Asks the one prompt and answers piece by piece.
    pub async fn pieces(self, served: &Served) -> Result<Pieces, Status> {
        let Self { id, model, layout, mut prompts, .. } = self;
        let Prompt { ask, .. } = prompts.pop().expect("a job has a prompt");
        let reply = Reply::start(served, ask).await.map_err(status)?;
        Ok(Pieces { reply, head: Head { id, model, layout }, over: false })
    }
}

/// Bytes of text that the answers of one request may still have.
#[derive(Clone, Copy)]
struct Budget<'a> {
    bytes: &'a AtomicUsize,
    bytes_max: usize,
}

async fn whole(mut reply: Reply, echo: String, budget: Budget<'_>) -> Result<Answer, Status> {
    let Budget { bytes, bytes_max } = budget;
    let mut answer = Answer { input_tokens: reply.prompt_tokens(), text: echo, ..Answer::default() };
    let mut added = answer.text.len();
    loop {
        if bytes.fetch_add(added, Ordering::Relaxed) + added > bytes_max {
            let problem = format!("the answer is larger than {bytes_max} bytes: ask for it with stream set to true");
            return Err(Status::resource_exhausted(problem));
        }
        match reply.next().await {
            None => return Ok(answer),
            Some(Err(error)) => return Err(status(error)),
            Some(Ok(ReplyEvent::Finished(end))) => answer.finished = Some(end),
            Some(Ok(ReplyEvent::Delta { text, reasoning, tokens, .. })) => {
                added = text.len() + reasoning.len();
                answer.add(&text, &reasoning, &tokens);
                continue;
            }
            Some(Ok(_)) => {}
        }
        added = 0;
    }
}

/// An answer under way. Dropping it stops the generation.
pub struct Pieces {
    reply: Reply,
    head: Head,
    over: bool,
}

impl Pieces {
    /// The next piece; the last says so. Not to be asked after the last or an error.
    pub async fn next(&mut self) -> Result<ModelInferResponse, Status> {
        loop {
            let mut answer = Answer { input_tokens: self.reply.prompt_tokens(), ..Answer::default() };
            let event = self.reply.next().await.ok_or_else(|| Status::internal("nothing comes after the end"))?;
            match event {
                Err(error) => {
                    self.over = true;
                    return Err(status(error));
                }
                Ok(ReplyEvent::Delta { text, reasoning, tokens, .. }) => answer.add(&text, &reasoning, &tokens),
                Ok(ReplyEvent::Finished(end)) => {
                    self.over = true;
                    answer.finished = Some(end);
                }
                Ok(_) => continue,
            }
            return Ok(self.head.response(vec![answer]));
        }
    }

    /// The last piece, or an error, was the end.
    pub fn is_over(&self) -> bool {
        self.over
    }
}

/// What all responses of a request have in common.
struct Head {
    id: String,
    model: String,
    layout: Layout,
}

impl Head {
    /// A response with one answer for each prompt.
    fn response(&self, answers: Vec<Answer>) -> ModelInferResponse {
        let layout = &self.layout;
        let mut response = head(self.id.clone(), self.model.clone());
        let last = answers.iter().all(|a| a.finished.is_some());
        set_final(&mut response, last);
        let finished: Vec<Option<Finished>> = answers.iter().map(|a| a.finished).collect();
        let reasons = finished.iter().map(|f| f.map_or(String::new(), |f| reason(f.reason).into())).collect();
        let input_tokens = answers.iter().map(|a| a.input_tokens).collect();
        let output_tokens = answers.iter().map(|a| a.output_tokens).collect();
        let logprobs = answers.iter().map(|a| a.logprob).collect();
        let (texts, reasonings) = answers.into_iter().map(|a| (a.text, a.reasoning)).unzip();
        layout.add(&mut response, outputs::TEXT, Elements::Texts(texts));
        layout.add(&mut response, outputs::REASONING, Elements::Texts(reasonings));
        layout.add(&mut response, outputs::FINISH_REASON, Elements::Texts(reasons));
        layout.add(&mut response, outputs::NUM_INPUT_TOKENS, Elements::UInts(input_tokens));
        layout.add(&mut response, outputs::NUM_OUTPUT_TOKENS, Elements::UInts(output_tokens));
        layout.add(&mut response, outputs::CUMULATIVE_LOGPROB, Elements::Floats(logprobs));
        if last {
            let ends: Vec<Finished> = finished.into_iter().flatten().collect();
            add_usage(&mut response, &ends);
        }
        response
    }
}

/// Counts of all prompts together, and the seed of the only one, as parameters.
fn add_usage(response: &mut ModelInferResponse, ends: &[Finished]) {
    let sum = |count: fn(&Usage) -> u32| ends.iter().map(|end| i64::from(count(&end.usage))).sum::<i64>();
    let mut add = |name: &str, count: i64| {
        let value = InferParameter { parameter_choice: Some(ParameterChoice::Int64Param(count)) };
        response.parameters.insert(name.into(), value);
    };
    add("prompt_tokens", sum(|u| u.prompt_tokens));
    add("completion_tokens", sum(|u| u.completion_tokens));
    add("reasoning_tokens", sum(|u| u.reasoning_tokens));
    if let [end] = ends {
        let value = InferParameter { parameter_choice: Some(ParameterChoice::Uint64Param(end.seed)) };
        response.parameters.insert("seed".into(), value);
    }
}

fn reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Abort => "abort",
    }
}

/// A response that says only whose it is.
pub fn head(id: String, model: String) -> ModelInferResponse {
    ModelInferResponse { id, model_name: model, model_version: super::model::VERSION.into(), ..Default::default() }
}

/// Says whether a response is its request's last.
pub fn set_final(response: &mut ModelInferResponse, last: bool) {
    let value = InferParameter { parameter_choice: Some(ParameterChoice::BoolParam(last)) };
    response.parameters.insert(FINAL_RESPONSE.into(), value);
}

fn text_parameter(text: String) -> InferParameter {
    InferParameter { parameter_choice: Some(ParameterChoice::StringParam(text)) }
}
