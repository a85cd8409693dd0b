//! Clusters whose processes are the ranks of an MPI job: rank 0 serves, the others work.

pub use ranks::{complete, fabric, leave, rank};

#[cfg(feature = "mpi")]
mod ranks {
    use anyhow::Result;
    use lingqu_cluster::{ClusterConfig, WorkerConfig};
    use lingqu_fabric::{Fabric, Secret};
    use lingqu_fabric_mpi::Job;

    use crate::Usage;

    /// Begins MPI; workers that the file does not list are all ranks but 0.
    pub fn complete(config: &mut ClusterConfig) -> Result<()> {
        let ranks = Job::get()?.size();
        if ranks == 1 {
            let example = "mpirun -np 1 lingqu serve --cluster mpi: : -np 3 lingqu worker --cluster mpi:";
            return Err(Usage(format!("--cluster: the MPI job has no workers; start it by {example}")).into());
        }
        if config.workers.is_empty() {
            let worker = |rank| WorkerConfig {
                id: rank as u32,
                address: Job::address(rank),
                memory_gib: None,
                speed: 1.0,
                incarnation: 0,
            };
            config.workers = (1..ranks).map(worker).collect();
        }
        Ok(())
    }

    /// Of this process, for one that works.
    pub fn rank() -> Result<u32> {
        match Job::get()?.rank() {
            0 => Err(Usage("rank 0 serves: put the workers behind it on mpirun's command line".into()).into()),
            rank => Ok(rank as u32),
        }
    }

    /// Without a file of a secret the ranks share one of their own.
    pub fn fabric(config: &ClusterConfig) -> Result<Box<dyn Fabric>> {
        let job = Job::get()?;
        let own = config.secret_file.as_os_str().is_empty();
        let secret = if own { job.secret() } else { Secret::read(&config.secret_file)? };
        Ok(Box::new(job.fabric(secret)))
    }

    /// Ends the job, if this process is in one and all went well. Otherwise its launcher ends the others.
    pub fn leave() {
        if let Some(job) = Job::begun() {
            job.leave();
        }
    }
}

#[cfg(not(feature = "mpi"))]
mod ranks {
    use anyhow::Result;
    use lingqu_cluster::ClusterConfig;
    use lingqu_fabric::Fabric;

    use crate::Usage;

    fn missing<T>() -> Result<T> {
        Err(Usage("this lingqu was built without MPI: cargo build --release --features mpi".into()).into())
    }

    pub fn complete(_: &mut ClusterConfig) -> Result<()> {
        missing()
    }

    pub fn rank() -> Result<u32> {
        missing()
    }

    pub fn fabric(_: &ClusterConfig) -> Result<Box<dyn Fabric>> {
        missing()
    }

    pub fn leave() {}
}
