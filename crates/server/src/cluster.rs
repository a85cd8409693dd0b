//! Routed experts in other processes: what `--cluster` and `--exchange-wire` put behind a model's exchange.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use lingqu_backend::{Backend, Exchange};
use lingqu_cluster::{ClusterConfig, ClusterExchange, FabricName, Model, PairExchange, Shard, Traffic, WireFormat};
use lingqu_fabric::{Certificates, Fabric, Secret, TcpFabric};
use lingqu_model::{Experts, LoadOptions, Package, load_routed_experts, routed_expert_bytes};

use crate::{Usage, mpi};

/// The ranks of an MPI job in place of a file.
const RANKS: &str = "mpi:";

/// What the file says; `mpi:` is none, and says that the ranks of this job are the cluster.
pub fn config(file: &Path) -> Result<ClusterConfig> {
    let mut config = if file == Path::new(RANKS) { ClusterConfig::of_ranks() } else { ClusterConfig::read(file)? };
    if config.fabric == FabricName::Mpi {
        mpi::complete(&mut config)?;
    }
    Ok(config)
}

/// The way between the processes of `config`.
pub fn fabric(config: &ClusterConfig) -> Result<Box<dyn Fabric>> {
    if config.fabric == FabricName::Mpi {
        return mpi::fabric(config);
    }
    tcp(&config.secret_file, config)
}

/// The same over TCP, with a secret from elsewhere.
pub fn tcp(secret_file: &Path, config: &ClusterConfig) -> Result<Box<dyn Fabric>> {
    let fabric = TcpFabric::new(Secret::read(secret_file)?);
    Ok(match &config.tls {
        None => Box::new(fabric),
        Some(tls) => Box::new(fabric.with_certificates(Certificates::read(&tls.files())?)),
    })
}

/// Experts of `package` on `backend`: none yet, any on demand.
pub fn shard(package: Package, backend: &Arc<dyn Backend>) -> Result<Shard> {
    let (hidden, of_load) = (package.config.hidden, Arc::clone(backend));
    let load = move |layer: usize, experts: &[usize]| {
        load_routed_experts(&package, &of_load, layer, experts).map_err(|e| e.to_string())
    };
    Ok(Shard::new(Arc::clone(backend), hidden, Box::new(load))?)
}

/// What an exchange must know of a model that is loaded with `options`.
pub fn model(package: &Package, options: &LoadOptions) -> Result<Model> {
    let config = &package.config;
    let moe = config.moe.as_ref().ok_or_else(|| Usage(format!("{} has no routed experts", config.name)))?;
    let layers = config.layers + usize::from(options.speculate);
    Ok(Model {
        fingerprint: package.checkpoint.fingerprint(),
        rows_max: options.batch_rows_max,
        hidden: config.hidden,
        experts: moe.route.experts,
        top_k: moe.route.top_k,
        expert_bytes: routed_expert_bytes(package, layers),
    })
}

/// Connects to the workers of the cluster and waits until they have loaded.
pub fn connect(
    file: &Path,
    package: &Package,
    device: &Arc<dyn Backend>,
    options: &LoadOptions,
) -> Result<Arc<ClusterExchange>> {
    let config = config(file)?;
    let (fabric, model) = (fabric(&config)?, model(package, options)?);
    let exchange = ClusterExchange::start(&config, fabric, Arc::clone(device), &model);
    Ok(Arc::new(exchange.with_context(|| format!("the cluster of {}", file.display()))?))
}

/// All experts on `device`, asked as over this wire. `package` opens the checkpoint once more.
pub fn alone(wire: WireFormat, package: Package, device: &Arc<dyn Backend>, options: &LoadOptions) -> Result<Experts> {
    let model = model(&package, options)?;
    let exchange = PairExchange::new(Arc::clone(device), shard(package, device)?, wire, &model)?;
    Ok(Experts::Behind(Arc::new(exchange) as Arc<dyn Exchange>))
}

/// What the exchange cost, by row and layer: `tokens` rows through the whole model make `tokens * layers` of them.
pub fn figures(traffic: &Traffic) -> String {
    let per_row = |count: u64| count as f64 / traffic.rows.max(1) as f64;
    let bytes = traffic.bytes_sent + traffic.bytes_received;
    let mut text = format!(
        "exchange, for each row and layer: {:.0} bytes (at least {:.0}), {:.2} messages (at least {:.2})",
        per_row(bytes),
        per_row(traffic.bytes_min),
        per_row(traffic.messages),
        per_row(traffic.messages_min)
    );
    if traffic.fenced > 0 {
        text += &format!(" | workers fenced {}, experts adopted {}", traffic.fenced, traffic.adopted);
    }
    text
}
