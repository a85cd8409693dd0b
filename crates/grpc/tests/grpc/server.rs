//! A server on a free port of the loopback, and its clients.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lingqu_engine::{Engine, EngineConfig};
use lingqu_grpc::{GrpcConfig, Phase, ServeError, serve};
use lingqu_model::Model;
use lingqu_proto::v1;
use lingqu_proto::v1::generate_event::Event;
use lingqu_proto::v1::generate_request::Input;
use lingqu_proto::v1::inference_client::InferenceClient;
use lingqu_proto::v1::models_client::ModelsClient;
use lingqu_proto::v1::tokenizer_client::TokenizerClient;
use lingqu_serving::{ModelCard, Served, ServedModel};
use lingqu_testkit::toy::{TOY_VOCAB, ToyControl, ToyFaults, ToyModel};
use lingqu_types::{Limits, SamplingParams};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::Status;
use tonic::transport::Channel;

use crate::toy;

/// Long enough for a busy machine; only a failing test waits so long.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct TestServer {
    pub address: SocketAddr,
    pub channel: Channel,
    pub engine: Arc<Engine>,
    pub phase: watch::Sender<Phase>,
    pub serving: JoinHandle<Result<(), ServeError>>,
}

/// What a test may want otherwise.
pub struct Options {
    pub limits: Limits,
    pub config: GrpcConfig,
    pub default_sampling: SamplingParams,
    pub with_template: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            limits: Limits { top_logprobs_max: 5, ..Limits::for_context(100, 4) },
            config: GrpcConfig::default(),
            default_sampling: SamplingParams { temperature: 0.6, top_p: 0.95, ..SamplingParams::default() },
            with_template: true,
        }
    }
}

impl TestServer {
    /// On the toy model, whose answers are noise.
    pub async fn toy(options: Options, faults: ToyFaults) -> (Self, Arc<ToyControl>) {
        let (model, control) = ToyModel::new(&options.limits, faults);
        (Self::start(options, Box::new(model)).await, control)
    }

    /// On a model that recites `script`, whose beginning is the prompt.
    pub async fn reciting(script: &str) -> Self {
        let options = Options::default();
        let model = toy::reciting(script, &options.limits);
        Self::start(options, Box::new(model)).await
    }

    async fn start(options: Options, model: Box<dyn Model>) -> Self {
        let Options { limits, config, default_sampling, with_template } = options;
        let tokenizer = Arc::new(toy::tokenizer(with_template));
        let eos_token_ids = tokenizer.eos_ids().to_vec();
        let engine_config = EngineConfig::new(limits, eos_token_ids.clone());
        let engine = Arc::new(Engine::start(model, toy::backend(), engine_config).expect("an engine"));
        let card = ModelCard {
            name: "toy".into(),
            architecture: "toy".into(),
            vocabulary_size: TOY_VOCAB as u32,
            fingerprint: "f00d".into(),
            weight_formats: vec!["none".into()],
            eos_token_ids,
        };
        let model = ServedModel { engine: engine.handle(), tokenizer, card, default_sampling };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (phase, phases) = watch::channel(Phase::Serving);
        let serving = tokio::spawn(serve(config, Arc::new(Served::new(model, 2)), listener, phases));
        let channel = connect(address).await.expect("a server");
        Self { address, channel, engine, phase, serving }
    }

    /// A connection of its own.
    pub async fn connect(&self) -> Result<Channel, tonic::transport::Error> {
        connect(self.address).await
    }

    pub fn inference(&self) -> InferenceClient<Channel> {
        InferenceClient::new(self.channel.clone())
    }

    pub fn models(&self) -> ModelsClient<Channel> {
        ModelsClient::new(self.channel.clone())
    }

    pub fn tokenizer(&self) -> TokenizerClient<Channel> {
        TokenizerClient::new(self.channel.clone())
    }

    pub async fn once(&self, request: v1::GenerateRequest) -> Result<v1::GenerateReply, Status> {
        self.inference().generate_once(request).await.map(tonic::Response::into_inner)
    }

    /// The events of a stream, put together by the rules of the `.proto`, and how many there were.
    pub async fn streamed(&self, request: v1::GenerateRequest) -> Result<(v1::GenerateReply, usize), Status> {
        let mut stream = self.inference().generate(request).await?.into_inner();
        let mut reply = v1::GenerateReply::default();
        let mut events = 0;
        while let Some(event) = stream.message().await? {
            assert!(reply.finished.is_none(), "an event after the last");
            events += 1;
            match event.event.expect("an event holds something") {
                Event::PromptLogprobs(part) => {
                    assert!(reply.token_ids.is_empty(), "the prompt comes first");
                    let all = reply.prompt_logprobs.get_or_insert_default();
                    assert_eq!(part.start as usize, all.tokens.len(), "parts follow each other");
                    all.tokens.extend(part.tokens);
                    all.next_top = part.next_top;
                }
                Event::Delta(part) => {
                    reply.text += &part.text;
                    reply.reasoning += &part.reasoning;
                    reply.token_ids.extend(part.token_ids);
                    reply.logprobs.extend(part.logprobs);
                    for piece in part.tool_calls {
                        match reply.tool_calls.get_mut(piece.index as usize) {
                            Some(call) => {
                                assert!(piece.id.is_empty() && piece.name.is_empty(), "they come once");
                                call.arguments += &piece.arguments;
                            }
                            None => reply.tool_calls.push(piece),
                        }
                    }
                }
                Event::Finished(end) => reply.finished = Some(end),
            }
        }
        Ok((reply, events))
    }

    /// Waits until the engine has nothing to do.
    pub async fn until_idle(&self) {
        let handle = self.engine.handle();
        until("an idle engine", || {
            let load = handle.load();
            load.running + load.waiting == 0
        })
        .await;
    }

    /// As the binary does on SIGTERM.
    pub async fn stop(self) {
        self.phase.send_replace(Phase::Stopping);
        let ended = tokio::time::timeout(PATIENCE, self.serving).await;
        ended.expect("the server ends").expect("no panic").expect("no error");
    }
}

async fn connect(address: SocketAddr) -> Result<Channel, tonic::transport::Error> {
    Channel::from_shared(format!("http://{address}")).expect("an address").connect().await
}

/// Polls until `done`.
pub async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "still no {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Up to 12 tokens after a text.
pub fn prompt(text: &str) -> v1::GenerateRequest {
    v1::GenerateRequest { input: Some(Input::Prompt(text.into())), max_tokens: Some(12), ..Default::default() }
}

/// The same, always the likeliest token.
pub fn greedy(text: &str) -> v1::GenerateRequest {
    let sampling = v1::Sampling { temperature: Some(0.0), ..Default::default() };
    v1::GenerateRequest { sampling: Some(sampling), max_tokens: Some(60), ..prompt(text) }
}

pub fn token_ids(ids: &[u32]) -> Option<Input> {
    Some(Input::TokenIds(v1::TokenIds { ids: ids.to_vec() }))
}

pub fn chat(turns: &[(&str, &str)]) -> v1::Chat {
    let message = |&(role, content): &(&str, &str)| v1::ChatMessage {
        role: role.into(),
        content: content.into(),
        ..Default::default()
    };
    v1::Chat { messages: turns.iter().map(message).collect(), add_generation_prompt: None }
}
