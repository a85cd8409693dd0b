//! A worker's side: it registers under a lease, and keeps that alive.

use std::time::{Duration, Instant};

use tonic::Code;

use crate::client::{KeyValue, Lease, Put};
use crate::pauses::Pauses;
use crate::{EtcdError, RegisterError, Registration, Registry};

/// Longest pause between attempts.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// etcd ends leases some time after they ran out; that long is waited for the one of a predecessor.
const LATE: Duration = Duration::from_secs(5);

/// A registration that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registered {
    pub id: u32,
    /// Above 0; another one each time.
    pub incarnation: u64,
    lease: Lease,
}

/// What one attempt came to.
enum Attempt {
    Registered(Registered),
    /// Somebody else is.
    Taken(KeyValue),
}

impl Registry {
    /// Registers worker `id` under a lease of `ttl`. A predecessor's lease is waited for, until it must have ended;
    /// etcd is, for `patience`.
    ///
    /// # Errors
    /// [`RegisterError::Taken`] if another process with this id lives.
    pub async fn register(
        &self,
        id: u32,
        registration: &Registration,
        ttl: Duration,
        patience: Duration,
    ) -> Result<Registered, RegisterError> {
        let value = serde_json::to_string(registration).expect("text and numbers");
        let (began, mut pauses) = (Instant::now(), Pauses::new(PAUSE_MAX));
        let (mut lease, mut taken, mut said) = (None, None, String::new());
        loop {
            let attempt = self.attempt(id, &value, ttl, &mut lease).await;
            match attempt {
                Ok(Attempt::Registered(registered)) => return Ok(registered),
                Ok(Attempt::Taken(by)) => {
                    let address = address_of(&by);
                    let since = *taken.get_or_insert_with(|| {
                        tracing::warn!("worker {id} is registered already, at {address}; waiting for its lease to end");
                        Instant::now()
                    });
                    let waited = since.elapsed();
                    if waited > ttl + LATE {
                        return Err(RegisterError::Taken { id, address, waited });
                    }
                }
                Err(error) if began.elapsed() > patience => return Err(error.into()),
                Err(error) => {
                    let problem = error.to_string();
                    if said != problem {
                        tracing::warn!("worker {id} cannot be registered: {problem}; trying again");
                        said = problem;
                    }
                }
            }
            tokio::time::sleep(pauses.next()).await;
        }
    }

    /// `lease` is kept from one attempt to the next: of one that failed it is not known what it did.
    async fn attempt(
        &self,
        id: u32,
        value: &str,
        ttl: Duration,
        lease: &mut Option<Lease>,
    ) -> Result<Attempt, EtcdError> {
        let key = self.worker_key(id);
        let found = self.client.range(&key, "", 1).await?.kvs.into_iter().next();
        let own = match *lease {
            Some(lease) => lease,
            None => match found {
                Some(kv) => return Ok(Attempt::Taken(kv)), // no lease is asked for in vain
                None => *lease.insert(self.client.grant(ttl).await?),
            },
        };
        let registered = |revision: i64| {
            let incarnation = u64::try_from(revision).map_err(|_| EtcdError::Malformed("a revision below 0"))?;
            Ok(Attempt::Registered(Registered { id, incarnation, lease: own }))
        };
        match self.client.create(&key, value, own.id).await {
            Ok(Put::Created { revision }) => registered(revision),
            Ok(Put::Taken(kv)) if kv.lease == own.id => registered(kv.create_revision),
            Ok(Put::Taken(kv)) => {
                *lease = None;
                self.client.revoke(own.id).await?;
                Ok(Attempt::Taken(kv))
            }
            Err(error) => {
                if matches!(error, EtcdError::Refused { code: Code::NotFound, .. }) {
                    *lease = None; // it ran out meanwhile
                }
                Err(error)
            }
        }
    }

    /// Keeps a registration. Returns when etcd says that it is gone: who is registered so must answer nobody until it
    /// is registered again. While etcd cannot be reached nothing is known to be gone.
    pub async fn keep(&self, registered: &Registered) {
        let every = registered.lease.ttl / 3;
        let (mut pauses, mut is_away) = (Pauses::new(every), false);
        let mut pause = every;
        loop {
            tokio::time::sleep(pause).await;
            match self.is_kept(registered).await {
                Ok(true) => {
                    if is_away {
                        tracing::info!("etcd is back; worker {} is still registered", registered.id);
                    }
                    is_away = false;
                    pauses.reset();
                    pause = every;
                }
                Ok(false) => return,
                Err(error) => {
                    if !is_away {
                        tracing::warn!("worker {} cannot renew its lease: {error}", registered.id);
                    }
                    is_away = true;
                    pause = pauses.next();
                }
            }
        }
    }

    /// Renews the lease, and looks whether the registration is still there: somebody may have deleted it.
    async fn is_kept(&self, registered: &Registered) -> Result<bool, EtcdError> {
        if !self.client.keep_alive(registered.lease.id).await? {
            return Ok(false);
        }
        let found = self.client.range(&self.worker_key(registered.id), "", 1).await?;
        Ok(found.kvs.first().is_some_and(|kv| kv.lease == registered.lease.id))
    }

    /// Ends a registration, so that nobody need wait for its lease.
    pub async fn resign(&self, registered: &Registered) -> Result<(), EtcdError> {
        self.client.revoke(registered.lease.id).await
    }
}

fn address_of(kv: &KeyValue) -> String {
    let registration = serde_json::from_slice::<Registration>(&kv.value);
    registration.map_or_else(|_| "an unknown address".into(), |registration| registration.address)
}
