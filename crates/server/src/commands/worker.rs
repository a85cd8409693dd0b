//! `lingqu worker`: holds routed experts for a server, until SIGTERM or Ctrl-C.

use anyhow::{Context, Result};
use lingqu_cluster::{ClusterConfig, Identity, Worker, WorkerId};
use lingqu_fabric::Fabric;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::WorkerArgs;
use crate::embedded::model_name;
use crate::{Usage, cluster, wiring};

pub fn run(args: &WorkerArgs) -> Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(tracing::Level::INFO).init();
    let file = args.model.cluster.as_deref().ok_or_else(|| Usage("a worker needs --cluster FILE".into()))?;
    let config = ClusterConfig::read(file)?;
    let id = WorkerId(args.id);
    let missing = || Usage(format!("{} has no worker with the id {}", file.display(), args.id));
    let own = config.worker(id).ok_or_else(missing)?;
    let package = wiring::open_package(args.model.model.as_deref())?;
    if package.config.moe.is_none() {
        return Err(Usage(format!("{} has no routed experts", package.config.name)).into());
    }
    let backend = wiring::backend(&args.model)?;
    let arithmetic = wiring::arithmetic(&*backend, &args.model);
    let identity = Identity { id, fingerprint: package.checkpoint.fingerprint(), arithmetic };
    let worker = Worker::new(cluster::shard(package, &backend)?, identity);
    let address = args.listen.as_deref().unwrap_or(&own.address);
    let listener = cluster::fabric(&config)?.listen(address).with_context(|| format!("cannot listen on {address}"))?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    runtime.block_on(async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let name = model_name(args.model.model.as_deref());
        eprintln!("lingqu: experts of {name} with {}", backend.capabilities().name);
        eprintln!("lingqu: {id} on {}", listener.address());
        let (ended, end) = tokio::sync::oneshot::channel();
        let serve = move || {
            let _ = ended.send(worker.serve(&*listener));
        };
        std::thread::Builder::new().name("listener".into()).spawn(serve).context("cannot start a thread")?;
        // Nothing need be finished first: who asks has other copies, or another worker load the experts.
        tokio::select! {
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
            error = end => Err(error.context("the listener ended")?.into()),
        }
    })
}
