//! One cluster in etcd: its settings, and the workers that are registered.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::client::{Client, Event, KeyValue, Put, Reading};
use crate::pauses::Pauses;
use crate::roll::Roll;
use crate::{Address, EtcdError, Tls};

/// More are not read.
pub const WORKERS_MAX: usize = 1024;
/// The longest settings.
pub const CONFIG_BYTES_MAX: usize = 64 << 10;
/// The longest registration.
const REGISTRATION_BYTES_MAX: usize = 4096;
const ADDRESS_BYTES_MAX: usize = 300;
/// Between attempts to reach etcd.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// What a worker says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Registration {
    /// `host:port` at which servers call it.
    pub address: String,
    /// What it has for experts; unless said, enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_gib: Option<f64>,
    /// Relative to the others.
    #[serde(default = "one")]
    pub speed: f64,
}

fn one() -> f64 {
    1.0
}

impl Registration {
    /// The error names the field.
    pub fn check(&self) -> Result<(), String> {
        let is_positive = |value: f64| value.is_finite() && value > 0.0;
        if self.address.is_empty() || self.address.len() > ADDRESS_BYTES_MAX {
            return Err(format!("address: {} bytes are not 1 to {ADDRESS_BYTES_MAX}", self.address.len()));
        }
        if !is_positive(self.speed) || self.memory_gib.is_some_and(|gib| !is_positive(gib)) {
            return Err("speed and memory_gib are numbers above 0".into());
        }
        Ok(())
    }
}

/// A worker that is registered.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    pub id: u32,
    /// Of this registration, above 0.
    pub incarnation: u64,
    pub registration: Registration,
}

pub struct Registry {
    pub(crate) client: Client,
    /// `/lingqu/NAME`
    prefix: String,
}

impl Registry {
    /// Asks nothing yet. To be called in the context of a runtime.
    pub fn new(address: &Address, tls: Option<&Tls>) -> Result<Self, EtcdError> {
        Ok(Self { client: Client::new(address, tls)?, prefix: format!("/lingqu/{}", address.name) })
    }

    pub(crate) fn worker_key(&self, id: u32) -> String {
        format!("{}/workers/{id}", self.prefix)
    }

    /// The keys of all workers: from the first on, to before the second.
    fn worker_keys(&self) -> (String, String) {
        (format!("{}/workers/", self.prefix), format!("{}/workers0", self.prefix)) // 0 follows /
    }

    /// Puts settings where none are yet. Returns those that are there now.
    pub async fn put_config(&self, text: &str) -> Result<String, EtcdError> {
        let key = format!("{}/config", self.prefix);
        if text.len() > CONFIG_BYTES_MAX {
            let problem = format!("{} bytes are more than {CONFIG_BYTES_MAX}", text.len());
            return Err(EtcdError::Value { key, problem });
        }
        match self.client.create(&key, text, 0).await? {
            Put::Created { .. } => Ok(text.to_owned()),
            Put::Taken(kv) => config_text(kv),
        }
    }

    /// The settings, if they are there.
    pub async fn config(&self) -> Result<Option<String>, EtcdError> {
        let reading = self.client.range(&format!("{}/config", self.prefix), "", 1).await?;
        reading.kvs.into_iter().next().map(config_text).transpose()
    }

    /// Who is registered now, and the revision of that.
    pub async fn workers(&self) -> Result<(Vec<Member>, i64), EtcdError> {
        let (from, end) = self.worker_keys();
        let Reading { revision, kvs, more } = self.client.range(&from, &end, WORKERS_MAX).await?;
        if more {
            return Err(EtcdError::TooMany { prefix: from, max: WORKERS_MAX });
        }
        Ok((kvs.iter().filter_map(|kv| self.member(kv)).collect(), revision))
    }

    /// Tells who is there, all of them, now and whenever that changes, for as long as it is polled. While etcd cannot
    /// be reached nothing changes; workers that are not there any more after that get `grace` to register again.
    pub async fn follow(&self, grace: Duration, mut tell: impl FnMut(Vec<Member>)) -> std::convert::Infallible {
        let mut roll = Roll::new(grace);
        let (mut told, mut pauses, mut said) = (None, Pauses::new(PAUSE_MAX), String::new());
        loop {
            let mut tell = |members: Vec<Member>| {
                if told.as_ref() != Some(&members) {
                    told = Some(members.clone());
                    tell(members);
                }
            };
            let Err(error) = self.hear(&mut roll, &mut pauses, &mut tell).await;
            roll.hold();
            let problem = error.to_string();
            if said != problem {
                tracing::warn!("{problem}; workers stay as they are");
                said = problem;
            }
            tokio::time::sleep(pauses.next()).await;
        }
    }

    /// Reads all, then watches, until etcd fails.
    async fn hear(
        &self,
        roll: &mut Roll,
        pauses: &mut Pauses,
        tell: &mut impl FnMut(Vec<Member>),
    ) -> Result<std::convert::Infallible, EtcdError> {
        let (found, revision) = self.workers().await?;
        roll.read(found, Instant::now());
        tell(roll.members());
        let (from, end) = self.worker_keys();
        // Nothing is missed between the reading and the watch. After any end of a watch all is read again: that needs
        // no history, so neither a compaction nor an etcd that lost its data is a special case.
        let mut watch = self.client.watch(&from, &end, revision + 1).await?;
        pauses.reset();
        loop {
            let expiry = roll.next_expiry();
            let expires = async {
                match expiry {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                events = watch.next() => events?.into_iter().for_each(|event| self.apply(roll, event)),
                () = expires => roll.expire(Instant::now()),
            }
            let members = roll.members();
            if members.len() > WORKERS_MAX {
                return Err(EtcdError::TooMany { prefix: from, max: WORKERS_MAX });
            }
            tell(members);
        }
    }

    fn apply(&self, roll: &mut Roll, event: Event) {
        match event {
            // One that is not understood is not there, whatever was there before.
            Event::Put(kv) => match (self.member(&kv), self.worker_id(&kv.key)) {
                (Some(member), _) => roll.put(member),
                (None, Some(id)) => roll.delete(id),
                (None, None) => {}
            },
            Event::Deleted { key } => {
                if let Some(id) = self.worker_id(&key) {
                    roll.delete(id);
                }
            }
        }
    }

    fn worker_id(&self, key: &[u8]) -> Option<u32> {
        let digits = std::str::from_utf8(key).ok()?.strip_prefix(&self.worker_keys().0)?;
        let id = digits.parse().ok()?;
        (self.worker_key(id).as_bytes() == key).then_some(id) // no +7 and no 007
    }

    /// None, and a line in the log, if it is of another form.
    fn member(&self, kv: &KeyValue) -> Option<Member> {
        let parse = || {
            let id = self.worker_id(&kv.key).ok_or("the key does not end with a worker's number")?;
            if kv.value.len() > REGISTRATION_BYTES_MAX {
                return Err(format!("{} bytes are more than {REGISTRATION_BYTES_MAX}", kv.value.len()));
            }
            let registration: Registration = serde_json::from_slice(&kv.value).map_err(|e| e.to_string())?;
            registration.check()?;
            let incarnation = u64::try_from(kv.create_revision).map_err(|e| e.to_string())?;
            Ok(Member { id, incarnation, registration })
        };
        let told = |problem: String| tracing::warn!("{} in etcd is no worker: {problem}", kv.key.escape_ascii());
        parse().map_err(told).ok()
    }
}

fn config_text(kv: KeyValue) -> Result<String, EtcdError> {
    let key = String::from_utf8_lossy(&kv.key).into_owned();
    if kv.value.len() > CONFIG_BYTES_MAX {
        return Err(EtcdError::Value { key, problem: format!("{} bytes are too many", kv.value.len()) });
    }
    String::from_utf8(kv.value).map_err(|_| EtcdError::Value { key, problem: "it is not UTF-8".into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_no_registration_is_nobody() {
        let registry = Registry::new(&"etcd://127.0.0.1:1/r1".parse().expect("sound"), None).expect("sound");
        let check = |key: &str, value: &str, sound: bool| {
            let kv = KeyValue { key: key.into(), value: value.into(), create_revision: 9, ..KeyValue::default() };
            assert_eq!(registry.member(&kv).is_some(), sound, "{key} {value}");
        };
        let sound = "{\"address\": \"a:1\"}";
        check("/lingqu/r1/workers/7", sound, true);
        check("/lingqu/r1/workers/0", "{\"address\": \"a:1\", \"memory_gib\": 56, \"speed\": 0.5, \"of\": 2}", true);
        for key in ["/lingqu/r1/workers/x", "/lingqu/r1/workers/", "/lingqu/r1/workers/07", "/lingqu/r1/workers/+7"] {
            check(key, sound, false);
        }
        check("/lingqu/r2/workers/7", sound, false);
        check("/lingqu/r1/workers/4294967296", sound, false);
        for value in ["", "{}", "[]", "{\"address\": \"\"}", "{\"address\": \"a:1\", \"speed\": 0}"] {
            check("/lingqu/r1/workers/7", value, false);
        }
        check("/lingqu/r1/workers/7", "{\"address\": \"a:1\", \"memory_gib\": -1}", false);
        check("/lingqu/r1/workers/7", &format!("{{\"address\": \"a:1\", \"x\": \"{}\"}}", "x".repeat(5000)), false);
        check("/lingqu/r1/workers/7", &format!("{{\"address\": \"{}\"}}", "a".repeat(301)), false);
    }
}
