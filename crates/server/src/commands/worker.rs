//! `lingqu worker`: holds routed experts for a server, until SIGTERM or Ctrl-C.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Args;
use lingqu_cluster::{FabricName, Identity, Worker, WorkerId};
use lingqu_fabric::{Fabric, FabricError, Listener};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::ModelArgs;
use crate::embedded::model_name;
use crate::membership::{ClusterAt, Enrolment, RegistrationArgs};
use crate::{Usage, cluster, mpi, wiring};

#[derive(Debug, Args)]
pub struct WorkerArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Which of the cluster's workers this is [default over MPI: its rank].
    #[arg(long, value_name = "N")]
    pub id: Option<u32>,
    /// Where to listen [default: the worker's address in the file of --cluster].
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// Port on which to say over HTTP how it is: /health, /ready (a server has it hold its part and work), /metrics.
    #[arg(long, value_name = "ADDR")]
    pub http_addr: Option<SocketAddr>,
    #[command(flatten)]
    pub registration: RegistrationArgs,
}

pub fn run(args: &WorkerArgs) -> Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(tracing::Level::INFO).init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let Place { id, address, fabric, is_rank, mut enrolment } = runtime.block_on(place(args))?;
    let package = wiring::open_package(args.model.model.as_deref())?;
    if package.config.moe.is_none() {
        return Err(Usage(format!("{} has no routed experts", package.config.name)).into());
    }
    let backend = wiring::backend(&args.model, wiring::Weights::AtOnce)?;
    let arithmetic = wiring::arithmetic(&*backend, &args.model);
    let identity = Identity { id, fingerprint: package.checkpoint.fingerprint(), arithmetic };
    let worker = Worker::new(cluster::shard(package, &backend)?, identity);
    let listener = fabric.listen(&address).with_context(|| format!("cannot listen on {address}"))?;

    runtime.block_on(async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let name = model_name(args.model.model.as_deref());
        eprintln!("lingqu: experts of {name} with {}", backend.capabilities().name);
        let probes = match args.http_addr {
            Some(address) => {
                let http = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
                eprintln!("lingqu: HTTP on {}", http.local_addr()?);
                Some(http)
            }
            None => None,
        };
        let probes = async {
            match probes {
                Some(http) => lingqu_http::serve_worker(http, Arc::clone(&worker)).await,
                None => std::future::pending().await,
            }
        };
        eprintln!("lingqu: {id} on {}", listener.address());
        // Nothing need be finished first: who asks has other copies, or another worker load the experts.
        let outcome = tokio::select! {
            // A rank that leaves alone would end the job: this one waits for the one that serves.
            _ = terminate.recv(), if !is_rank => Ok(()),
            _ = interrupt.recv() => Ok(()),
            never = probes => match never {},
            outcome = work(args, (&worker, listener), enrolment.as_mut()) => outcome,
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
    /// In etcd.
    enrolment: Option<Enrolment>,
}

async fn place(args: &WorkerArgs) -> Result<Place> {
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
            Ok(Place { id, address, fabric: cluster::fabric(&config)?, is_rank, enrolment: None })
        }
        Some(ClusterAt::Etcd(at)) => {
            let missing = || Usage("a worker of --cluster etcd://… needs --listen HOST:PORT".into());
            let address = args.listen.clone().ok_or_else(missing)?;
            args.registration.registration(&address)?; // what is wrong with it is said before anything is waited for
            let id = WorkerId(args.id.ok_or_else(no_id)?);
            let (enrolment, fabric) = Enrolment::new(at, id.0, &args.model.etcd).await?;
            Ok(Place { id, address, fabric, is_rank: false, enrolment: Some(enrolment) })
        }
    }
}

/// Answers servers, registered in etcd where that is asked for, until either ends.
async fn work(
    args: &WorkerArgs,
    (worker, listener): (&Arc<Worker>, Box<dyn Listener>),
    enrolment: Option<&mut Enrolment>,
) -> Result<()> {
    let listens = listener.address();
    if enrolment.is_some() {
        worker.fence(); // until it is registered
    }
    let (ended, end) = tokio::sync::oneshot::channel();
    let of_thread = Arc::clone(worker);
    let serve = move || {
        let _ = ended.send(of_thread.serve(&*listener));
    };
    std::thread::Builder::new().name("listener".into()).spawn(serve).context("cannot start a thread")?;
    let hold = async {
        let Some(enrolment) = enrolment else { return std::future::pending().await };
        let registration = args.registration.registration(&listens)?;
        enrolment.hold(worker, &registration).await.map(|never| match never {})
    };
    tokio::select! {
        outcome = hold => outcome,
        error = end => match error.context("the listener ended")? {
            FabricError::Ended => Ok(()),
            error => Err(error.into()),
        },
    }
}
