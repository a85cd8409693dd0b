//! `inference.GRPCInferenceService`: the KServe v2 protocol, as Triton's clients speak it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use futures_util::Stream;
use lingqu_proto::inference as wire;
use lingqu_proto::inference::grpc_inference_service_server::GrpcInferenceService;
use lingqu_proto::inference::repository_index_response::ModelIndex;
use lingqu_serving::{Phase, Served};
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};

use crate::config::GrpcConfig;
use crate::convert::service::FromHeaders;
use crate::kserve::infer::job;
use crate::kserve::model::{self, Statistics, VERSION, check_version};
use crate::kserve::stream::responses;
use crate::status::status;

/// Of Triton's protocol extensions, those that are served.
const EXTENSIONS: [&str; 4] = ["binary_tensor_data", "parameters", "model_configuration", "statistics"];

/// What all calls of the service share.
pub(crate) struct Kserve {
    pub served: Arc<Served>,
    phase: watch::Receiver<Phase>,
    /// Bytes of an answer that comes in one response, at most.
    pub reply_bytes_max: usize,
    /// Requests of one stream that run at once.
    pub stream_requests_max: usize,
    pub statistics: Statistics,
}

pub(crate) struct KserveService(pub Arc<Kserve>);

impl Kserve {
    pub fn new(served: Arc<Served>, phase: watch::Receiver<Phase>, config: &GrpcConfig) -> Self {
        Self {
            served,
            phase,
            reply_bytes_max: config.reply_bytes_max,
            stream_requests_max: config.stream_requests_max,
            statistics: Statistics::default(),
        }
    }

    fn is_live(&self) -> bool {
        self.served.model.engine.ended().is_none()
    }

    fn is_ready(&self) -> bool {
        *self.phase.borrow() == Phase::Serving && self.is_live()
    }

    fn name(&self) -> &str {
        &self.served.model.card.name
    }

    /// The model's name, or that of the adapter that was asked about.
    fn find<'a>(&'a self, name: &'a str, version: &str) -> Result<&'a str, Status> {
        let adapter = self.served.adapter(name).map_err(status)?;
        check_version("version", version)?;
        Ok(adapter.map_or(self.name(), |_| name))
    }
}

#[tonic::async_trait]
impl GrpcInferenceService for KserveService {
    type ModelStreamInferStream = Pin<Box<dyn Stream<Item = Result<wire::ModelStreamInferResponse, Status>> + Send>>;

    async fn server_live(
        &self,
        _request: Request<wire::ServerLiveRequest>,
    ) -> Result<Response<wire::ServerLiveResponse>, Status> {
        Ok(Response::new(wire::ServerLiveResponse { live: self.0.is_live() }))
    }

    async fn server_ready(
        &self,
        _request: Request<wire::ServerReadyRequest>,
    ) -> Result<Response<wire::ServerReadyResponse>, Status> {
        Ok(Response::new(wire::ServerReadyResponse { ready: self.0.is_ready() }))
    }

    async fn model_ready(
        &self,
        request: Request<wire::ModelReadyRequest>,
    ) -> Result<Response<wire::ModelReadyResponse>, Status> {
        let wire::ModelReadyRequest { name, version } = request.into_inner();
        // An unknown model is not an error to this question.
        let ready = self.0.find(&name, &version).is_ok() && self.0.is_ready();
        Ok(Response::new(wire::ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _request: Request<wire::ServerMetadataRequest>,
    ) -> Result<Response<wire::ServerMetadataResponse>, Status> {
        Ok(Response::new(wire::ServerMetadataResponse {
            name: "lingqu".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            extensions: EXTENSIONS.map(Into::into).to_vec(),
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<wire::ModelMetadataRequest>,
    ) -> Result<Response<wire::ModelMetadataResponse>, Status> {
        let wire::ModelMetadataRequest { name, version } = request.into_inner();
        Ok(Response::new(model::metadata(self.0.find(&name, &version)?)))
    }

    async fn model_infer(
        &self,
        request: Request<wire::ModelInferRequest>,
    ) -> Result<Response<wire::ModelInferResponse>, Status> {
        let began = Instant::now();
        let service = &self.0;
        let answered = async {
            let headers = FromHeaders::read(request.metadata())?;
            let job = job(&service.served, request.into_inner(), &headers)?;
            let prompts = job.prompt_count();
            Ok((job.answer(&service.served, service.reply_bytes_max).await?, prompts))
        };
        match answered.await {
            Ok((response, prompts)) => {
                service.statistics.succeeded(prompts, began.elapsed());
                Ok(Response::new(response))
            }
            Err(status) => {
                service.statistics.failed(began.elapsed());
                Err(status)
            }
        }
    }

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<wire::ModelInferRequest>>,
    ) -> Result<Response<Self::ModelStreamInferStream>, Status> {
        let headers = FromHeaders::read(request.metadata())?;
        let responses = responses(Arc::clone(&self.0), request.into_inner(), headers);
        Ok(Response::new(Box::pin(responses)))
    }

    async fn model_config(
        &self,
        request: Request<wire::ModelConfigRequest>,
    ) -> Result<Response<wire::ModelConfigResponse>, Status> {
        let wire::ModelConfigRequest { name, version } = request.into_inner();
        let config = model::config(self.0.find(&name, &version)?);
        Ok(Response::new(wire::ModelConfigResponse { config: Some(config) }))
    }

    async fn model_statistics(
        &self,
        request: Request<wire::ModelStatisticsRequest>,
    ) -> Result<Response<wire::ModelStatisticsResponse>, Status> {
        let wire::ModelStatisticsRequest { name, version } = request.into_inner();
        self.0.find(&name, &version)?;
        // Counted together with its adapters.
        let model_stats = vec![self.0.statistics.on_wire(self.0.name())];
        Ok(Response::new(wire::ModelStatisticsResponse { model_stats }))
    }

    async fn repository_index(
        &self,
        request: Request<wire::RepositoryIndexRequest>,
    ) -> Result<Response<wire::RepositoryIndexResponse>, Status> {
        let ready = self.0.is_ready();
        let entry = |name: &str| ModelIndex {
            name: name.into(),
            version: VERSION.into(),
            state: if ready { "READY" } else { "UNAVAILABLE" }.into(),
            reason: String::new(),
        };
        let adapters = self.0.served.model.engine.adapters().iter().map(|name| &**name);
        let models = match request.into_inner().ready && !ready {
            true => Vec::new(),
            false => std::iter::once(self.0.name()).chain(adapters).map(entry).collect(),
        };
        Ok(Response::new(wire::RepositoryIndexResponse { models }))
    }
}
