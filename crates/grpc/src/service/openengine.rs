//! `openengine.v1`: generation and control, as frameworks that drive engines speak it.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::Stream;
use lingqu_proto::openengine as wire;
use lingqu_proto::openengine::abort_request::Target;
use lingqu_proto::openengine::control_server::Control;
use lingqu_proto::openengine::inference_server::Inference;
use lingqu_serving::{Ask, FieldNames, Input, Phase, Reply, Served};
use lingqu_types::{Service, StopConditions};
use prost_types::Struct;
use prost_types::value::Kind;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use crate::convert::service::{FromHeaders, openengine_priority};
use crate::openengine::ask::question;
use crate::openengine::generation::Generation;
use crate::openengine::registry::{Abort, Registry};
use crate::service::inference::set_request_id;
use crate::status::{invalid, status};

const SCHEMA_REVISION: u32 = 1;
/// Of the OpenEngine repository, where /proto has its files from.
const SCHEMA_RELEASE: &str = "4def7c50b05e0674a0c3b26917399155535966e4";
const REQUEST_ID_BYTES_MAX: usize = 256;

/// What both services share.
pub(crate) struct OpenEngine {
    served: Arc<Served>,
    phase: watch::Receiver<Phase>,
    /// Of a prompt's log-probabilities, which come in one message.
    prompt_bytes_max: usize,
    registry: Arc<Registry>,
    /// Tells this process from others that serve the same model.
    instance_id: String,
}

pub(crate) struct OpenEngineInference(pub Arc<OpenEngine>);

pub(crate) struct OpenEngineControl(pub Arc<OpenEngine>);

impl OpenEngine {
    pub fn new(served: Arc<Served>, phase: watch::Receiver<Phase>, prompt_bytes_max: usize) -> Self {
        let instance_id = format!("{:016x}", RandomState::new().hash_one(SystemTime::now()));
        Self { served, phase, prompt_bytes_max, registry: Arc::default(), instance_id }
    }

    fn health(&self) -> wire::HealthState {
        match *self.phase.borrow() {
            _ if self.served.model.engine.ended().is_some() => wire::HealthState::NotReady,
            Phase::Serving => wire::HealthState::Ready,
            Phase::Draining | Phase::Stopping => wire::HealthState::Draining,
        }
    }

    /// Generates one token.
    async fn probe(&self) -> wire::HealthCheck {
        let names = FieldNames { input: "probe", sampling_prefix: "" };
        let ask = Ask {
            stop: StopConditions { max_tokens: Some(1), ..StopConditions::default() },
            ..Ask::new(Input::Tokens(vec![0]), &self.served.model.default_sampling, names)
        };
        let probed = async {
            let mut reply = Reply::start(&self.served, ask).await?;
            while let Some(event) = reply.next().await {
                event?;
            }
            Ok::<_, lingqu_serving::RequestError>(())
        };
        let (state, message) = match probed.await {
            Ok(()) => (wire::HealthState::Ready, String::new()),
            Err(error) => (wire::HealthState::NotReady, error.to_string()),
        };
        wire::HealthCheck { name: "inference_probe".into(), state: state.into(), message }
    }
}

#[tonic::async_trait]
impl Inference for OpenEngineInference {
    type GenerateStream = Pin<Box<dyn Stream<Item = Result<wire::GenerateResponse, Status>> + Send>>;

    async fn generate(
        &self,
        request: Request<wire::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let OpenEngine { served, registry, prompt_bytes_max, .. } = &*self.0;
        let priority = openengine_priority(request.metadata())?;
        let service = FromHeaders::read(request.metadata())?.over(Service { priority, ..Service::default() });
        let mut request = request.into_inner();
        let name = match std::mem::take(&mut request.request_id) {
            name if name.len() > REQUEST_ID_BYTES_MAX => {
                return Err(invalid("request_id", format_args!("is longer than {REQUEST_ID_BYTES_MAX} bytes")));
            }
            name if name.is_empty() => registry.new_name(),
            name => name,
        };
        if !request.lora_name.is_empty() {
            served.check_adapter("lora_name", &request.lora_name).map_err(status)?;
        }
        let question = question(request, service, &served.model.default_sampling)?;
        let entry = registry.enter(&name);
        let entry = entry.ok_or_else(|| Status::already_exists("request_id: a request of this id is under way"))?;
        let generation = Generation::start(Arc::clone(served), question, entry, *prompt_bytes_max).await?;
        let id = generation.id().to_string();
        // A client that goes away drops this stream, and with it the generation.
        let stream = futures_util::stream::unfold(generation, |mut generation| async move {
            let event = generation.next().await?;
            Some((Ok(event), generation))
        });
        let mut response = Response::new(Box::pin(stream) as Self::GenerateStream);
        set_request_id(response.metadata_mut(), &id);
        Ok(response)
    }
}

#[tonic::async_trait]
impl Control for OpenEngineControl {
    type SubscribeKvEventsStream = Pin<Box<dyn Stream<Item = Result<wire::SubscribeKvEventsResponse, Status>> + Send>>;

    async fn get_server_info(
        &self,
        _request: Request<wire::GetServerInfoRequest>,
    ) -> Result<Response<wire::ServerInfo>, Status> {
        let model = &self.0.served.model;
        let limits = model.engine.limits();
        let parallelism = wire::ParallelismInfo {
            tensor_parallel_size: Some(1),
            pipeline_parallel_size: Some(1),
            data_parallel_size: Some(1),
            data_parallel_rank: Some(0),
            data_parallel_start_rank: Some(0),
            decode_context_parallel_size: Some(1),
        };
        let capacity = wire::DeploymentCapacity {
            kv_block_size: Some(limits.block_tokens as u32),
            total_kv_blocks: Some(model.engine.load().kv_blocks_total as u64),
            max_running_requests: Some(limits.sequences_max as u64),
            max_batched_tokens: Some(limits.batch_rows_max as u64),
            max_loras: Some(model.engine.adapters().len() as u32),
        };
        Ok(Response::new(wire::ServerInfo {
            engine_name: "lingqu".into(),
            engine_version: env!("CARGO_PKG_VERSION").into(),
            engine_role: wire::EngineRole::Aggregated.into(),
            instance_id: self.0.instance_id.clone(),
            supported_models: vec![model.card.name.clone()],
            parallelism: Some(parallelism),
            kv_connector: Some(wire::KvConnectorInfo { enabled: Some(false), ..Default::default() }),
            schema_revision: SCHEMA_REVISION,
            minimum_client_revision: SCHEMA_REVISION,
            schema_release: SCHEMA_RELEASE.into(),
            capacity: Some(capacity),
            extra: None,
        }))
    }

    async fn get_model_info(
        &self,
        request: Request<wire::GetModelInfoRequest>,
    ) -> Result<Response<wire::ModelInfo>, Status> {
        let served = &self.0.served;
        served.check_name(&request.into_inner().model).map_err(status)?;
        let (card, limits) = (&served.model.card, served.model.engine.limits());
        let logprobs = wire::LogprobCapabilities {
            supported: Some(true),
            candidate_selection_modes: vec![wire::CandidateTokenSelectionMode::TopN.into()],
            max_top_n: Some(limits.top_logprobs_max),
        };
        // Not EBNF_GRAMMAR: those who ask for it mostly mean another notation than ours.
        let modes = [
            wire::GuidedDecodingMode::JsonSchema,
            wire::GuidedDecodingMode::Regex,
            wire::GuidedDecodingMode::Choice,
            wire::GuidedDecodingMode::JsonObject,
        ];
        let modes = modes.map(Into::into).to_vec();
        let guided = wire::GuidedDecodingCapabilities { supported: Some(true), modes };
        let generation = wire::GenerationCapabilities {
            prompt_logprobs: Some(logprobs.clone()),
            output_logprobs: Some(logprobs),
            guided_decoding: Some(guided),
            max_num_sequences: Some(lingqu_serving::ask::CHOICES_MAX),
            supports_priority: Some(true),
            supports_stop_in_output: Some(false),
            supports_cache_salt: Some(false),
            supports_prefix_cache_bypass: Some(false),
        };
        let text = |text: &str| prost_types::Value { kind: Some(Kind::StringValue(text.into())) };
        let extra = BTreeMap::from([
            ("architecture".into(), text(&card.architecture)),
            ("fingerprint".into(), text(&card.fingerprint)),
            ("weight_formats".into(), text(&card.weight_formats.join(","))),
        ]);
        let context = u32::try_from(limits.context_tokens_max).unwrap_or(u32::MAX);
        Ok(Response::new(wire::ModelInfo {
            model_id: card.name.clone(),
            served_model_name: card.name.clone(),
            max_context_length: Some(context),
            max_output_tokens: Some(context.saturating_sub(1)),
            supports_text_input: Some(true),
            supports_token_ids_input: Some(true),
            generation: Some(generation),
            // That would promise LoadLora too; a request may name those that ListLoras tells.
            supports_lora: Some(false),
            supports_multimodal: Some(false),
            extra: Some(Struct { fields: extra }),
            ..Default::default()
        }))
    }

    async fn get_load(&self, request: Request<wire::GetLoadRequest>) -> Result<Response<wire::LoadInfo>, Status> {
        let load = self.0.served.model.engine.load();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut info = wire::LoadInfo {
            instance_id: self.0.instance_id.clone(),
            timestamp_unix_nanos: Some(now.as_nanos() as u64),
            running_requests: Some(load.running as u32),
            queued_requests: Some(load.waiting as u32),
            active_kv_sessions: Some(0),
            used_kv_blocks: Some(load.kv_blocks_used as u64),
            total_kv_blocks: Some(load.kv_blocks_total as u64),
            ..Default::default()
        };
        if request.into_inner().include_per_rank {
            info.ranks = vec![wire::RankLoadInfo {
                data_parallel_rank: Some(0),
                running_requests: info.running_requests,
                queued_requests: info.queued_requests,
                used_kv_blocks: info.used_kv_blocks,
                total_kv_blocks: info.total_kv_blocks,
                ..Default::default()
            }];
        }
        Ok(Response::new(info))
    }

    async fn health(&self, request: Request<wire::HealthRequest>) -> Result<Response<wire::HealthResponse>, Status> {
        let wire::HealthRequest { include_inference_probe, model, role } = request.into_inner();
        self.0.served.check_name(&model).map_err(status)?;
        let mut state = self.0.health();
        let check = |name: &str, state: wire::HealthState| wire::HealthCheck {
            name: name.into(),
            state: state.into(),
            message: String::new(),
        };
        let mut checks = vec![check("scheduler", state)];
        let roles = [wire::EngineRole::Unspecified.into(), wire::EngineRole::Aggregated.into()];
        if !roles.contains(&role) {
            state = wire::HealthState::NotReady;
            checks.push(check("role", state));
        }
        if include_inference_probe && state == wire::HealthState::Ready {
            let probe = self.0.probe().await;
            state = probe.state();
            checks.push(probe);
        }
        Ok(Response::new(wire::HealthResponse { state: state.into(), checks }))
    }

    async fn abort(&self, request: Request<wire::AbortRequest>) -> Result<Response<wire::AbortResponse>, Status> {
        let registry = &self.0.registry;
        let (state, message) = match request.into_inner().target {
            None => return Err(invalid("target", "one of request_id, kv_session and all_requests is needed")),
            Some(Target::KvSession(_)) => return Err(Status::not_found("kv_session: this engine has none")),
            Some(Target::AllRequests(_)) => (wire::AbortStatus::Aborted, format!("{} requests", registry.abort_all())),
            Some(Target::RequestId(name)) => match registry.abort(&name) {
                Abort::Aborted => (wire::AbortStatus::Aborted, String::new()),
                Abort::Ended => (wire::AbortStatus::AlreadyFinished, String::new()),
                Abort::Unknown => return Err(Status::not_found("request_id: no such request")),
            },
        };
        Ok(Response::new(wire::AbortResponse { status: state.into(), message }))
    }

    async fn load_lora(
        &self,
        _request: Request<wire::LoadLoraRequest>,
    ) -> Result<Response<wire::LoadLoraResponse>, Status> {
        Err(Status::unimplemented("adapters are given to the server at its start"))
    }

    async fn unload_lora(
        &self,
        _request: Request<wire::UnloadLoraRequest>,
    ) -> Result<Response<wire::UnloadLoraResponse>, Status> {
        Err(Status::unimplemented("adapters stay as long as the server"))
    }

    async fn list_loras(
        &self,
        _request: Request<wire::ListLorasRequest>,
    ) -> Result<Response<wire::ListLorasResponse>, Status> {
        let adapters = self.0.served.model.engine.adapters().iter().zip(1..);
        let adapter = |(name, lora_id): (&Arc<str>, i64)| wire::LoraAdapter {
            lora_id,
            lora_name: name.to_string(),
            source_path: String::new(),
        };
        Ok(Response::new(wire::ListLorasResponse { adapters: adapters.map(adapter).collect() }))
    }

    async fn get_kv_event_sources(
        &self,
        _request: Request<wire::GetKvEventSourcesRequest>,
    ) -> Result<Response<wire::GetKvEventSourcesResponse>, Status> {
        Ok(Response::new(wire::GetKvEventSourcesResponse::default()))
    }

    async fn subscribe_kv_events(
        &self,
        _request: Request<wire::SubscribeKvEventsRequest>,
    ) -> Result<Response<Self::SubscribeKvEventsStream>, Status> {
        Err(Status::unimplemented("this engine tells no events of its KV cache"))
    }
}
