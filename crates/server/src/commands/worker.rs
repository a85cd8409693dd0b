//! `lingqu worker`: holds routed experts for a server, until SIGTERM or Ctrl-C.

use std::sync::Arc;

use anyhow::{Context, Result};
use lingqu_cluster::{FabricName, Identity, Worker, WorkerId};
use lingqu_fabric::{Fabric, FabricError, Listener};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::WorkerArgs;
use crate::embedded::model_name;
use crate::membership::{ClusterAt, Enrolment};
use crate::{Usage, cluster, mpi, wiring};

pub fn run(args: &WorkerArgs) -> Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(tracing::Level::INFO).init();
    let Place { id, address, fabric, is_rank } = place(args)?;
    let package = wiring::open_package(args.model.model.as_deref())?;
    if package.config.moe.is_none() {
        return Err(Usage(format!("{} has no routed experts", package.config.name)).into());
    }
    let backend = wiring::backend(&args.model)?;
    let arithmetic = wiring::arithmetic(&*backend, &args.model);
    let identity = Identity { id, fingerprint: package.checkpoint.fingerprint(), arithmetic };
    let worker = Worker::new(cluster::shard(package, &backend)?, identity);
    let listener = fabric.listen(&address).with_context(|| format!("cannot listen on {address}"))?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    runtime.block_on(async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let name = model_name(args.model.model.as_deref());
        eprintln!("lingqu: experts of {name} with {}", backend.capabilities().name);
        eprintln!("lingqu: {id} on {}", listener.address());
        let mut enrolment = None;
        // Nothing need be finished first: who asks has other copies, or another worker load the experts.
        let outcome = tokio::select! {
            // A rank that leaves alone would end the job: this one waits for the one that serves.
            _ = terminate.recv(), if !is_rank => Ok(()),
            _ = interrupt.recv() => Ok(()),
            outcome = work(args, id, (&worker, listener), &mut enrolment) => outcome,
        };
        if let Some(enrolment) = enrolment {
            enrolment.resign().await;
        }
        outcome
    })
}

/// A worker's place in its cluster.
struct Place {
    id: WorkerId,
    /// Where it listens.
    address: String,
    fabric: Box<dyn Fabric>,
    /// Of an MPI job.
    is_rank: bool,
}

fn place(args: &WorkerArgs) -> Result<Place> {
    let no_id = || Usage("a worker needs --id N".into());
    match &args.model.cluster {
        None => Err(Usage("a worker needs --cluster FILE, or --cluster etcd://…".into()).into()),
        Some(ClusterAt::File(file)) => {
            args.model.etcd.must_be_unused()?;
            args.registration.must_be_unused()?;
            let config = cluster::config(file)?;
            let is_rank = config.fabric == FabricName::Mpi;
            let id = WorkerId(match args.id {
                Some(id) => id,
                None if is_rank => mpi::rank()?,
                None => return Err(no_id().into()),
            });
            let missing = || Usage(format!("{} has no worker with the id {}", file.display(), id.0));
            let own = config.worker(id).ok_or_else(missing)?;
            let address = args.listen.as_ref().unwrap_or(&own.address).clone();
            Ok(Place { id, address, fabric: cluster::fabric(&config)?, is_rank })
        }
        Some(ClusterAt::Etcd(_)) => {
            let missing = || Usage("a worker of --cluster etcd://… needs --listen HOST:PORT".into());
            let address = args.listen.clone().ok_or_else(missing)?;
            let fabric = Box::new(args.model.etcd.fabric()?);
            Ok(Place { id: WorkerId(args.id.ok_or_else(no_id)?), address, fabric, is_rank: false })
        }
    }
}

/// Answers servers, registered in etcd where that is asked for, until either ends.
async fn work(
    args: &WorkerArgs,
    id: WorkerId,
    (worker, listener): (&Arc<Worker>, Box<dyn Listener>),
    enrolment: &mut Option<Enrolment>,
) -> Result<()> {
    let listens = listener.address();
    if let Some(ClusterAt::Etcd(_)) = &args.model.cluster {
        worker.fence(); // until it is registered
    }
    let (ended, end) = tokio::sync::oneshot::channel();
    let of_thread = Arc::clone(worker);
    let serve = move || {
        let _ = ended.send(of_thread.serve(&*listener));
    };
    std::thread::Builder::new().name("listener".into()).spawn(serve).context("cannot start a thread")?;
    let hold = async {
        let Some(ClusterAt::Etcd(at)) = &args.model.cluster else { return std::future::pending().await };
        let registration = args.registration.registration(&listens)?;
        let found = Enrolment::new(at, id.0, &args.model.etcd, registration).await?;
        enrolment.insert(found).hold(worker).await.map(|never| match never {})
    };
    tokio::select! {
        outcome = hold => outcome,
        error = end => match error.context("the listener ended")? {
            FabricError::Ended => Ok(()),
            error => Err(error.into()),
        },
    }
}
