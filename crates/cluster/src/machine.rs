//! Time, threads and waiting as the cluster has them: the system's, or those of a simulation, which lets one thread run
//! at a time, in an order and at times that a seed gives.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Instant;

pub(crate) trait Machine: Send + Sync {
    fn now(&self) -> Instant;

    fn spawn(&self, name: String, run: Box<dyn FnOnce() + Send>) -> std::io::Result<()>;

    /// Of a simulation; `None` where threads wait as the system has them wait.
    fn turns(&self) -> Option<&dyn Turns>;
}

/// How simulated threads wait for each other.
pub(crate) trait Turns {
    /// Lets others go on, one of whom holds what this thread needs.
    fn pass(&self);

    /// Until the next [`Turns::notify_all`], or until `deadline`.
    fn wait(&self, deadline: Instant);

    fn notify_all(&self);
}

/// The one we are on.
pub(crate) struct System;

impl Machine for System {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn spawn(&self, name: String, run: Box<dyn FnOnce() + Send>) -> std::io::Result<()> {
        std::thread::Builder::new().name(name).spawn(run).map(|_| ())
    }

    fn turns(&self) -> Option<&dyn Turns> {
        None
    }
}

/// A condition variable.
pub(crate) struct Changes {
    machine: Arc<dyn Machine>,
    changed: Condvar,
}

impl Changes {
    pub fn new(machine: Arc<dyn Machine>) -> Self {
        Self { machine, changed: Condvar::new() }
    }

    /// What is behind these locks is whole at every moment in which a thread could panic.
    pub fn lock<'a, T>(&self, mutex: &'a Mutex<T>) -> MutexGuard<'a, T> {
        let Some(turns) = self.machine.turns() else { return mutex.lock().unwrap_or_else(PoisonError::into_inner) };
        loop {
            match mutex.try_lock() {
                Ok(guard) => return guard,
                Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => turns.pass(),
            }
        }
    }

    /// Lets others at `mutex`, whose guard this is, until [`Changes::notify_all`] or `deadline`; or without a reason.
    pub fn wait<'a, T>(&self, mutex: &'a Mutex<T>, guard: MutexGuard<'a, T>, deadline: Instant) -> MutexGuard<'a, T> {
        let Some(turns) = self.machine.turns() else {
            let wait = deadline.saturating_duration_since(Instant::now());
            return self.changed.wait_timeout(guard, wait).unwrap_or_else(PoisonError::into_inner).0;
        };
        drop(guard);
        turns.wait(deadline);
        self.lock(mutex)
    }

    pub fn notify_all(&self) {
        match self.machine.turns() {
            Some(turns) => turns.notify_all(),
            None => self.changed.notify_all(),
        }
    }
}
