//! Workers that are found in etcd: what `--cluster etcd://…` says, and how servers and workers come together there.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use clap::Args;
use lingqu_backend::Backend;
use lingqu_cluster::{ClusterConfig, ClusterControl, ClusterExchange, Deadlines, Worker, WorkerConfig, WorkerId};
use lingqu_fabric::Fabric;
use lingqu_membership::{Address, CONFIG_BYTES_MAX, EtcdError, Member, Registered, Registration, Registry, Tls};
use lingqu_model::{LoadOptions, Package};

use crate::{Usage, cluster};

/// Between looks for settings that somebody else is to put into etcd.
const POLL: Duration = Duration::from_millis(500);
/// A file of certificates that is longer was not meant.
const PEM_BYTES_MAX: u64 = 1 << 20;
/// For a worker that ends to say so in etcd; else its lease runs out.
const RESIGN: Duration = Duration::from_secs(1);

/// Where a cluster's workers are found.
#[derive(Clone, Debug)]
pub enum ClusterAt {
    File(PathBuf),
    Etcd(Address),
}

impl FromStr for ClusterAt {
    type Err = EtcdError;

    fn from_str(text: &str) -> Result<Self, EtcdError> {
        if text.contains("://") { text.parse().map(Self::Etcd) } else { Ok(Self::File(text.into())) }
    }
}

/// What a cluster in a file has in the file.
#[derive(Debug, Args)]
pub struct EtcdArgs {
    /// Secret that all processes of a cluster in etcd share.
    #[arg(long, value_name = "FILE", requires = "cluster")]
    pub cluster_secret: Option<PathBuf>,
    /// Settings of a cluster in etcd, as in a cluster's file but without workers and secret: put there unless some are.
    #[arg(long, value_name = "FILE", requires = "cluster")]
    pub cluster_config: Option<PathBuf>,
    /// Certificates of the authorities by which etcd is trusted: it is spoken to over TLS then.
    #[arg(long, value_name = "FILE", requires = "cluster")]
    pub etcd_ca: Option<PathBuf>,
    /// Certificate that etcd is shown.
    #[arg(long, value_name = "FILE", requires_all = ["etcd_ca", "etcd_key"])]
    pub etcd_certificate: Option<PathBuf>,
    /// Private key of that certificate.
    #[arg(long, value_name = "FILE", requires = "etcd_certificate")]
    pub etcd_key: Option<PathBuf>,
}

/// What a worker says of itself in etcd.
#[derive(Debug, Args)]
pub struct RegistrationArgs {
    /// Where servers call it, for etcd [default: the address of --listen].
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// Memory that it has for experts, for etcd [default: enough].
    #[arg(long, value_name = "GIB")]
    pub memory_gib: Option<f64>,
    /// Speed relative to other workers', for etcd [default: 1].
    #[arg(long, value_name = "X")]
    pub speed: Option<f64>,
}

impl EtcdArgs {
    /// With a cluster in a file.
    pub fn must_be_unused(&self) -> Result<()> {
        let Self { cluster_secret, cluster_config, etcd_ca, .. } = self;
        match [cluster_secret, cluster_config, etcd_ca].into_iter().any(Option::is_some) {
            true => {
                let problem = "--cluster-secret, --cluster-config and --etcd-ca are for --cluster etcd://…";
                Err(Usage(problem.into()).into())
            }
            false => Ok(()),
        }
    }

    /// What all processes share.
    fn secret(&self) -> Result<&Path> {
        let missing = || Usage("--cluster etcd://… needs --cluster-secret FILE".into());
        Ok(self.cluster_secret.as_deref().ok_or_else(missing)?)
    }

    fn registry(&self, address: &Address) -> Result<Registry> {
        let read = |file: &Path| {
            let mut bytes = Vec::new();
            let count = File::open(file).and_then(|file| file.take(PEM_BYTES_MAX).read_to_end(&mut bytes));
            count.with_context(|| format!("cannot read {}", file.display()))?;
            anyhow::Ok(bytes)
        };
        let own = match (&self.etcd_certificate, &self.etcd_key) {
            (Some(certificate), Some(key)) => Some([read(certificate)?, read(key)?]),
            _ => None,
        };
        let tls = match &self.etcd_ca {
            Some(ca) => Some(Tls { ca: read(ca)?, own }),
            None => None,
        };
        Ok(Registry::new(address, tls.as_ref())?)
    }

    /// The settings of the cluster: those in etcd. Waits for them, and for etcd, as long as a start may take.
    async fn settings(&self, registry: &Registry) -> Result<ClusterConfig> {
        let began = Instant::now();
        let own = match &self.cluster_config {
            Some(file) => Some(ClusterConfig::read_settings(file, CONFIG_BYTES_MAX)?),
            None => None,
        };
        let start_ms = own.as_ref().map_or(Deadlines::default().start_ms, |(own, _)| own.deadlines.start_ms);
        let (patience, mut said) = (Duration::from_millis(start_ms), String::new());
        loop {
            let found = match &own {
                Some((_, text)) => registry.put_config(text).await.map(Some),
                None => registry.config().await,
            };
            match (found, &own) {
                (Ok(Some(text)), own) => {
                    if own.as_ref().is_some_and(|(_, own)| *own != text) {
                        tracing::warn!("other settings than those of --cluster-config are in etcd; those count");
                    }
                    return Ok(ClusterConfig::parse_settings(&text, "the settings in etcd")?);
                }
                (Ok(None), _) if began.elapsed() > patience => {
                    return Err(anyhow!("no settings are in etcd: give --cluster-config FILE to one process"));
                }
                (Err(error), _) if began.elapsed() > patience => return Err(error.into()),
                (Ok(None), _) => {}
                (Err(error), _) => {
                    let problem = error.to_string();
                    if said != problem {
                        tracing::warn!("{problem}; trying again");
                        said = problem;
                    }
                }
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Connects to the workers that are registered, and has the exchange follow them from then on.
pub fn connect(
    address: &Address,
    args: &EtcdArgs,
    package: &Package,
    device: &Arc<dyn Backend>,
    options: &LoadOptions,
) -> Result<Arc<ClusterExchange>> {
    let (secret, model) = (args.secret()?, cluster::model(package, options)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let (registry, mut config) = runtime
        .block_on(async {
            let registry = args.registry(address)?;
            let config = args.settings(&registry).await?;
            anyhow::Ok((registry, config))
        })
        .with_context(|| format!("the cluster {address}"))?;
    let fabric = cluster::tcp(secret, &config)?;
    let (group, lease) = (Arc::new(Group::default()), Duration::from_millis(config.deadlines.lease_ms));
    let of_thread = Arc::clone(&group);
    let follow = move || {
        runtime.block_on(registry.follow(lease, |members| of_thread.hear(members)));
    };
    std::thread::Builder::new().name("membership".into()).spawn(follow).context("cannot start a thread")?;
    let members = group.await_members(&config).with_context(|| format!("the cluster {address}"))?;
    config.workers = members.iter().map(worker_config).collect();
    let exchange = ClusterExchange::start(&config, fabric, Arc::clone(device), &model);
    let exchange = Arc::new(exchange.with_context(|| format!("the cluster {address}"))?);
    group.attach(exchange.control(), members);
    Ok(exchange)
}

fn worker_config(member: &Member) -> WorkerConfig {
    let Registration { address, memory_gib, speed } = member.registration.clone();
    WorkerConfig { id: member.id, address, memory_gib, speed, incarnation: member.incarnation }
}

/// The workers in etcd, on their way to the exchange.
#[derive(Default)]
struct Group {
    heard: Mutex<Heard>,
    changed: Condvar,
}

#[derive(Default)]
struct Heard {
    /// By what etcd last said.
    members: Vec<Member>,
    /// What the exchange knows.
    applied: Vec<Member>,
    control: Option<ClusterControl>,
}

impl Group {
    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, members: Vec<Member>) {
        let mut heard = self.heard();
        heard.members = members;
        heard.apply();
        self.changed.notify_all();
    }

    /// Waits until enough workers are registered, or until there was time enough for that; then one will do.
    fn await_members(&self, config: &ClusterConfig) -> Result<Vec<Member>> {
        let until = Instant::now() + Duration::from_millis(config.deadlines.start_ms);
        let mut heard = self.heard();
        loop {
            let (count, left) = (heard.members.len(), until.saturating_duration_since(Instant::now()));
            if count >= config.placement.workers_min {
                return Ok(heard.members.clone());
            }
            if left.is_zero() {
                if count == 0 {
                    return Err(anyhow!("no worker is registered in etcd after {} ms", config.deadlines.start_ms));
                }
                tracing::warn!("begins with {count} workers, not the {} asked for", config.placement.workers_min);
                return Ok(heard.members.clone());
            }
            heard = self.changed.wait_timeout(heard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// From now on the exchange, which began with `applied`, knows what is heard.
    fn attach(&self, control: ClusterControl, applied: Vec<Member>) {
        let mut heard = self.heard();
        (heard.control, heard.applied) = (Some(control), applied);
        heard.apply();
    }
}

impl Heard {
    /// Tells the exchange who came and who went. One that registered anew has come.
    fn apply(&mut self) {
        let Some(control) = &self.control else { return };
        let is_there = |id: u32| self.members.iter().any(|member| member.id == id);
        for gone in self.applied.iter().filter(|member| !is_there(member.id)) {
            let Member { id, incarnation, .. } = gone;
            tracing::warn!("worker {id} (incarnation {incarnation}) is not registered any more");
            if let Err(error) = control.leave(WorkerId(*id)) {
                tracing::warn!("worker {id} cannot leave: {error}");
            }
        }
        for come in self.members.iter().filter(|member| !self.applied.contains(member)) {
            let Member { id, incarnation, registration } = come;
            tracing::info!("worker {id} (incarnation {incarnation}) is registered, at {}", registration.address);
            if let Err(error) = control.join(&worker_config(come)) {
                tracing::warn!("worker {id} cannot join: {error}");
            }
        }
        self.applied.clone_from(&self.members);
    }
}

/// A worker in etcd.
pub struct Enrolment {
    registry: Registry,
    id: u32,
    deadlines: Deadlines,
    registered: Option<Registered>,
}

impl Enrolment {
    /// Finds the cluster's settings, and by them the way between its processes.
    pub async fn new(at: &Address, id: u32, args: &EtcdArgs) -> Result<(Self, Box<dyn Fabric>)> {
        let (secret, registry) = (args.secret()?, args.registry(at)?);
        let config = args.settings(&registry).await.with_context(|| format!("the cluster {at}"))?;
        let fabric = cluster::tcp(secret, &config)?;
        Ok((Self { registry, id, deadlines: config.deadlines, registered: None }, fabric))
    }

    /// Registers `worker`, and again whenever etcd says that it is not registered any more; before that it answers
    /// nobody. While etcd cannot be reached the worker goes on as it is.
    ///
    /// # Errors
    /// Another process has its number; or etcd was not there at the start.
    pub async fn hold(&mut self, worker: &Worker, registration: &Registration) -> Result<std::convert::Infallible> {
        let lease = Duration::from_millis(self.deadlines.lease_ms);
        let mut patience = Duration::from_millis(self.deadlines.start_ms);
        loop {
            let registered = self.registry.register(self.id, registration, lease, patience).await?;
            self.registered = Some(registered);
            worker.admit_as(registered.incarnation);
            eprintln!("lingqu: worker {} is registered, as incarnation {}", self.id, registered.incarnation);
            self.registry.keep(&registered).await;
            worker.fence();
            tracing::warn!("worker {} is not registered any more, and answers nobody until it is", self.id);
            (self.registered, patience) = (None, Duration::MAX);
        }
    }

    /// The worker ends: its lease need not be waited for.
    pub async fn resign(&self) {
        if let Some(registered) = &self.registered
            && !matches!(tokio::time::timeout(RESIGN, self.registry.resign(registered)).await, Ok(Ok(())))
        {
            tracing::warn!("etcd does not hear that worker {} ends; its lease will", self.id);
        }
    }
}

impl RegistrationArgs {
    /// With a cluster in a file.
    pub fn must_be_unused(&self) -> Result<()> {
        let Self { advertise, memory_gib, speed } = self;
        match advertise.is_some() || memory_gib.is_some() || speed.is_some() {
            true => Err(Usage("the file of --cluster says address, memory and speed of a worker".into()).into()),
            false => Ok(()),
        }
    }

    /// Of a worker that listens at `listens`.
    pub fn registration(&self, listens: &str) -> Result<Registration> {
        let address = self.advertise.as_deref().unwrap_or(listens);
        if address.parse::<std::net::SocketAddr>().is_ok_and(|address| address.ip().is_unspecified()) {
            let problem = format!("nobody can call {address}: say with --advertise HOST:PORT where the worker is");
            return Err(Usage(problem).into());
        }
        let registration =
            Registration { address: address.into(), memory_gib: self.memory_gib, speed: self.speed.unwrap_or(1.0) };
        registration.check().map_err(Usage)?;
        Ok(registration)
    }
}
