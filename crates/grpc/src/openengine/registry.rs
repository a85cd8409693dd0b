//! Which requests run, by the names that clients gave them, so that another call may abort them.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Names of requests that have ended, kept to tell an abort that came late from one that is wrong.
const ENDED_MAX: usize = 1024;

/// The requests of one server. Their number is bounded by the calls that may be under way.
#[derive(Debug, Default)]
pub struct Registry {
    names: Mutex<Names>,
    /// Requests that came without a name.
    nameless: AtomicU64,
}

#[derive(Debug, Default)]
struct Names {
    running: HashMap<Arc<str>, Arc<Notify>>,
    /// Oldest first.
    ended: VecDeque<Arc<str>>,
}

/// What became of an abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    Aborted,
    Ended,
    Unknown,
}

/// A request under way. Dropping it ends it.
#[derive(Debug)]
pub struct Entry {
    registry: Arc<Registry>,
    name: Arc<str>,
    abort: Arc<Notify>,
}

impl Registry {
    /// A name for a request that came without one.
    pub fn new_name(&self) -> String {
        format!("lingqu-{}", self.nameless.fetch_add(1, Ordering::Relaxed))
    }

    /// Enters a request; `None` if one of its name runs.
    pub fn enter(self: &Arc<Self>, name: &str) -> Option<Entry> {
        let name: Arc<str> = name.into();
        let abort = Arc::new(Notify::new());
        let mut names = self.lock();
        if names.running.contains_key(&name) {
            return None;
        }
        names.ended.retain(|ended| *ended != name);
        names.running.insert(Arc::clone(&name), Arc::clone(&abort));
        Some(Entry { registry: Arc::clone(self), name, abort })
    }

    pub fn abort(&self, name: &str) -> Abort {
        let names = self.lock();
        match names.running.get(name) {
            Some(abort) => {
                abort.notify_one();
                Abort::Aborted
            }
            None if names.ended.iter().any(|ended| **ended == *name) => Abort::Ended,
            None => Abort::Unknown,
        }
    }

    /// Aborts all; returns how many.
    pub fn abort_all(&self) -> usize {
        let names = self.lock();
        names.running.values().for_each(|abort| abort.notify_one());
        names.running.len()
    }

    fn lock(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Resolves when the request is aborted, even if that was before.
    pub async fn aborted(&self) {
        self.abort.notified().await;
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut names = self.registry.lock();
        names.running.remove(&self.name);
        names.ended.push_back(Arc::clone(&self.name));
        if names.ended.len() > ENDED_MAX {
            names.ended.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_known_while_they_run_and_a_while_longer() {
        let registry = Arc::new(Registry::default());
        assert_eq!(registry.abort("a"), Abort::Unknown);
        let a = registry.enter("a").expect("free");
        let b = registry.enter("b").expect("free");
        assert!(registry.enter("a").is_none());
        assert_eq!((registry.abort("a"), registry.abort_all()), (Abort::Aborted, 2));
        drop(a);
        assert_eq!(registry.abort("a"), Abort::Ended);
        drop(registry.enter("a").expect("free again"));
        assert_eq!(registry.lock().ended.len(), 1, "one name is kept once");
        for i in 0..2 * ENDED_MAX {
            drop(registry.enter(&format!("{i}")).expect("free"));
        }
        assert_eq!(registry.lock().ended.len(), ENDED_MAX);
        assert_eq!(registry.abort("a"), Abort::Unknown);
        drop(b);
    }
}
