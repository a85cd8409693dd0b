//! The server: services over a listener, from serving through draining to the end.

use std::sync::Arc;
use std::time::Duration;

use lingqu_engine::EngineHandle;
use lingqu_proto::FILE_DESCRIPTOR_SET;
use lingqu_proto::inference::grpc_inference_service_server::GrpcInferenceServiceServer;
use lingqu_proto::openengine::control_server::ControlServer;
use lingqu_proto::openengine::inference_server::InferenceServer as OpenEngineServer;
use lingqu_proto::v1::cluster_server::ClusterServer;
use lingqu_proto::v1::inference_server::InferenceServer;
use lingqu_proto::v1::models_server::ModelsServer;
use lingqu_proto::v1::tokenizer_server::TokenizerServer;
use lingqu_serving::{Phase, Served};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::server::NamedService;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::config::GrpcConfig;
use crate::service::cluster::ClusterService;
use crate::service::inference::InferenceService;
use crate::service::kserve::{Kserve, KserveService};
use crate::service::models::ModelsService;
use crate::service::openengine::{OpenEngine, OpenEngineControl, OpenEngineInference};
use crate::service::tokenizer::TokenizerService;
use crate::transport::admission::{Admission, AdmissionLimits};
use crate::transport::connections::connections;

/// Flow control: bytes that a client may send ahead of what is read.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
const HEADER_BYTES_MAX: u32 = 16 << 10;
/// Streams that a client may open and reset before they are looked at ("rapid reset"); then its connection is closed.
const RESET_STREAMS_MAX: usize = 64;
/// How often the engine is asked whether it still runs.
const ENGINE_CHECK_INTERVAL: Duration = Duration::from_secs(1);

type LingquInference = InferenceServer<InferenceService>;
type LingquModels = ModelsServer<ModelsService>;
type LingquCluster = ClusterServer<ClusterService>;
type LingquTokenizer = TokenizerServer<TokenizerService>;
type KserveInference = GrpcInferenceServiceServer<KserveService>;
type OpenEngineGenerate = OpenEngineServer<OpenEngineInference>;
type OpenEngineManage = ControlServer<OpenEngineControl>;

/// Services whose health is told; "" is the server as a whole.
const HEALTH_NAMES: [&str; 8] = [
    "",
    LingquInference::NAME,
    LingquModels::NAME,
    LingquTokenizer::NAME,
    LingquCluster::NAME,
    KserveInference::NAME,
    OpenEngineGenerate::NAME,
    OpenEngineManage::NAME,
];

/// Why the server could not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("gRPC reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    #[error("gRPC transport: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// Serves a model on a bound listener until `phase` says [`Phase::Stopping`] (or its sender is gone) and the calls have
/// ended, or have been cut off after [`GrpcConfig::stop_timeout`]. While [`Phase::Draining`] holds, health is
/// NOT_SERVING.
///
/// # Errors
/// None that a client could cause.
pub async fn serve(
    config: GrpcConfig,
    served: Arc<Served>,
    listener: TcpListener,
    phase: watch::Receiver<Phase>,
) -> Result<(), ServeError> {
    let engine = served.model.engine.clone();
    let bytes_max = config.request_bytes_max;
    let inference = InferenceService { served: Arc::clone(&served), reply_bytes_max: config.reply_bytes_max };
    let inference = InferenceServer::new(inference).max_decoding_message_size(bytes_max);
    let models = ModelsServer::new(ModelsService(Arc::clone(&served))).max_decoding_message_size(bytes_max);
    let tokenizer = TokenizerServer::new(TokenizerService(Arc::clone(&served))).max_decoding_message_size(bytes_max);
    let cluster = ClusterService { cluster: served.cluster.clone(), changes_from: config.cluster_changes_from };
    let cluster = ClusterServer::new(cluster).max_decoding_message_size(bytes_max);
    let kserve = Kserve::new(Arc::clone(&served), phase.clone(), &config);
    let kserve = KserveInference::new(KserveService(Arc::new(kserve))).max_decoding_message_size(bytes_max);
    let openengine = Arc::new(OpenEngine::new(served, phase.clone(), config.reply_bytes_max));
    let generate = OpenEngineGenerate::new(OpenEngineInference(Arc::clone(&openengine)));
    let generate = generate.max_decoding_message_size(bytes_max);
    let control = OpenEngineManage::new(OpenEngineControl(openengine)).max_decoding_message_size(bytes_max);
    let (mut reporter, health) = tonic_health::server::health_reporter();
    report_health(&reporter, ServingStatus::Serving).await;

    let admission = Admission::new(&AdmissionLimits {
        calls_max: config.calls_max,
        arriving_max: config.arriving_max,
        request_bytes_in_flight_max: config.request_bytes_in_flight_max,
        read_timeout: config.request_read_timeout,
        stream_idle_timeout: config.stream_idle_timeout,
        write_stall_timeout: config.write_stall_timeout,
    });
    let serving = Server::builder()
        .max_concurrent_streams(config.streams_per_connection_max)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .http2_max_pending_accept_reset_streams(Some(RESET_STREAMS_MAX))
        .http2_max_local_error_reset_streams(Some(RESET_STREAMS_MAX))
        .http2_keepalive_interval(Some(config.keepalive_interval))
        .http2_keepalive_timeout(Some(config.keepalive_interval))
        .layer(admission)
        .add_service(inference)
        .add_service(models)
        .add_service(tokenizer)
        .add_service(cluster)
        .add_service(kserve)
        .add_service(generate)
        .add_service(control)
        .add_service(health)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .serve_with_incoming_shutdown(connections(listener, config.connections_max), stopping(phase.clone()));

    tokio::pin!(serving);
    tokio::select! {
        result = &mut serving => return Ok(result?),
        () = watch_health(&reporter, &engine, phase) => {}
    }
    // Streams of Health/Watch end when there is no more status to tell.
    for name in HEALTH_NAMES {
        reporter.clear_service_status(name).await;
    }
    match tokio::time::timeout(config.stop_timeout, serving).await {
        Ok(result) => Ok(result?),
        Err(_) => {
            tracing::warn!("calls were cut off: they had not ended in {:?}", config.stop_timeout);
            Ok(())
        }
    }
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

/// Resolves when the server is to stop. A wiring that is gone cannot tell us any more: that is a stop too.
async fn stopping(mut phase: watch::Receiver<Phase>) {
    let _ = phase.wait_for(|&phase| phase >= Phase::Stopping).await;
}

/// Keeps health true to the phase and to the engine; resolves when the server is to stop.
async fn watch_health(reporter: &HealthReporter, engine: &EngineHandle, mut phase: watch::Receiver<Phase>) {
    let mut reported = ServingStatus::Serving;
    loop {
        let now = *phase.borrow_and_update();
        if now >= Phase::Stopping {
            return;
        }
        let ended = engine.ended();
        let status = match now == Phase::Serving && ended.is_none() {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        };
        if status != reported {
            if let Some(cause) = ended {
                tracing::error!(%cause, "the engine has ended");
            }
            report_health(reporter, status).await;
            reported = status;
        }
        tokio::select! {
            changed = phase.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(ENGINE_CHECK_INTERVAL) => {}
        }
    }
}

async fn report_health(reporter: &HealthReporter, status: ServingStatus) {
    for name in HEALTH_NAMES {
        reporter.set_service_status(name, status).await;
    }
}
