//! `lingqu serve`: the server, until SIGTERM or Ctrl-C.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use lingqu_engine::{Engine, EngineConfig, PrefixSharing};
use lingqu_grpc::{ChangesFrom, GrpcConfig};
use lingqu_http::HttpConfig;
use lingqu_model::Package;
use lingqu_serving::{ModelCard, Phase, Served, ServedModel};
use lingqu_types::Limits;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::cli::{Callers, ServeArgs, Sharing};
use crate::embedded::model_name;
use crate::wiring::Loaded;
use crate::{Usage, cluster, wiring};

/// Threads that speak gRPC and HTTP; the model's own threads are separate.
const NETWORK_THREADS: usize = 2;
/// Prompts tokenized at once, each on a thread of its own.
const TEXT_WORK_MAX: usize = 2;

pub fn run(args: &ServeArgs) -> Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(tracing::Level::INFO).init();
    let mut package = wiring::open_package(args.model.model.as_deref())?;
    let limits = limits(args, &package)?;
    let tokenizer = wiring::tokenizer(&mut package)?;
    let backend = wiring::backend(&args.model, wiring::Weights::Settle)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(NETWORK_THREADS)
        .enable_all()
        .build()
        .context("cannot start the network threads")?;
    // Bound before the model is loaded: a port that is taken should not be learnt after minutes of loading.
    let ports = runtime.block_on(Ports::bind(args))?;

    let speculation = args.speculation.speculation(args.speculate_sequences);
    let Loaded { mut model, cluster } = wiring::load(&package, &backend, &args.model, &limits, speculation.as_ref())?;
    wiring::load_adapters(&mut *model, args.adapters.iter().map(|a| (&*a.name, &*a.path)))?;
    let mut config = EngineConfig::new(limits, package.generation.eos_token_ids.clone());
    config.kv_precision = wiring::kv_precision(&args.model);
    config.speculation = speculation;
    config.prefix_sharing = match args.prefix_sharing {
        Sharing::All => PrefixSharing::All,
        Sharing::Tenant => PrefixSharing::Tenant,
        Sharing::Off => PrefixSharing::Off,
    };
    config.tenant_weights = args.tenant_weights.iter().map(|(name, weight)| (name.as_str().into(), *weight)).collect();
    let engine = Engine::start(model, backend.clone(), config)?;
    let served = ServedModel {
        engine: engine.handle(),
        tokenizer: Arc::new(tokenizer),
        card: card(args, &package),
        default_sampling: wiring::default_sampling(&package),
    };
    // Before the address is told: whoever reads it may signal at once. Until here a signal ends the process, loading or
    // not, as it would any other.
    let signals = {
        let _context = runtime.enter();
        Signals::new()?
    };
    eprintln!("lingqu: serving {} with {}", served.card.name, backend.capabilities().name);
    eprintln!("lingqu: gRPC on {}", ports.grpc.local_addr()?);
    if let Some(http) = &ports.http {
        eprintln!("lingqu: HTTP on {}", http.local_addr()?);
    }
    let drain_timeout = Duration::from_secs(args.drain_timeout);
    let control = cluster.as_ref().map(|exchange| exchange.control());
    let served = Arc::new(Served::new(served, TEXT_WORK_MAX).with_cluster(control));
    runtime.block_on(serve_until_signal(engine, served, ports, signals, drain_timeout))?;
    if let Some(exchange) = cluster {
        eprintln!("lingqu: {}", cluster::figures(&exchange.traffic()));
    }
    Ok(())
}

fn limits(args: &ServeArgs, package: &Package) -> Result<Limits> {
    let context = wiring::context_tokens_max(package, args.max_context.map(|n| n.get()))?;
    let mut limits = Limits::for_context(context, args.max_sequences.get());
    limits.queue_requests_max = args.max_queue.get();
    if let Some(tokens) = args.kv_tokens {
        limits.blocks = tokens.get().div_ceil(limits.block_tokens);
        limits.validate().map_err(|error| Usage(format!("--kv-tokens {tokens}: {error}")))?;
    }
    Ok(limits)
}

fn card(args: &ServeArgs, package: &Package) -> ModelCard {
    let mut formats: Vec<(u64, String)> = Vec::new();
    for weights in lingqu_model::summary(package).weights {
        match formats.iter_mut().find(|(_, format)| *format == weights.format) {
            Some((bytes, _)) => *bytes += weights.bytes,
            None => formats.push((weights.bytes, weights.format)),
        }
    }
    formats.sort_by(|a, b| b.cmp(a));
    let fingerprint = package.checkpoint.fingerprint();
    ModelCard {
        name: model_name(args.model.model.as_deref()),
        architecture: package.config.architecture.to_string(),
        vocabulary_size: package.config.vocab_size as u32,
        fingerprint: fingerprint.iter().map(|byte| format!("{byte:02x}")).collect(),
        weight_formats: formats.into_iter().map(|(_, format)| format).collect(),
        eos_token_ids: package.generation.eos_token_ids.clone(),
    }
}

/// Where clients connect.
struct Ports {
    grpc: TcpListener,
    grpc_config: GrpcConfig,
    http: Option<TcpListener>,
}

impl Ports {
    async fn bind(args: &ServeArgs) -> Result<Self> {
        let bind = async |address: SocketAddr| {
            TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
        };
        let http = if args.no_http { None } else { Some(bind(args.http_addr).await?) };
        let cluster_changes_from = match args.cluster_changes_from {
            Callers::Loopback => ChangesFrom::Loopback,
            Callers::Any => ChangesFrom::Any,
        };
        let grpc_config = GrpcConfig { cluster_changes_from, ..GrpcConfig::default() };
        Ok(Self { grpc: bind(args.grpc_addr).await?, grpc_config, http })
    }
}

/// The signals that end the server.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes the signals over from now on; needs a runtime's context.
    fn new() -> Result<Self> {
        let terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
        let interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
        Ok(Self { terminate, interrupt })
    }
}

/// Serves until a signal comes; then refuses new requests, lets running ones end, and closes the ports.
async fn serve_until_signal(
    engine: Engine,
    served: Arc<Served>,
    ports: Ports,
    mut signals: Signals,
    drain_timeout: Duration,
) -> Result<()> {
    let (phase, phases) = watch::channel(Phase::Serving);
    let http = ports.http.map(|listener| {
        tokio::spawn(lingqu_http::serve(HttpConfig::default(), Arc::clone(&served), listener, phases.clone()))
    });
    let mut grpc = tokio::spawn(lingqu_grpc::serve(ports.grpc_config, served, ports.grpc, phases));
    tokio::select! {
        _ = signals.terminate.recv() => {}
        _ = signals.interrupt.recv() => {}
        ended = &mut grpc => return Ok(ended??),
    }
    eprintln!("lingqu: draining, for at most {} s", drain_timeout.as_secs());
    phase.send_replace(Phase::Draining);
    let report = tokio::task::spawn_blocking(move || engine.drain(drain_timeout)).await?;
    if report.cut_off > 0 {
        eprintln!("lingqu: {} requests did not end in time and were told so", report.cut_off);
    }
    phase.send_replace(Phase::Stopping);
    if let Some(http) = http {
        http.await?;
    }
    Ok(grpc.await??)
}
