//! Threads that run one at a time, by a clock that jumps to the next thing that happens.
//!
//! Whoever runs goes on until it waits, for a time or for another thread; then the seed says who is next. So a run is
//! the same each time, whatever the system does with the threads, and hours of it take as long as its work does.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::Thread;
use std::time::{Duration, Instant};

use lingqu_testkit::rng::Rng;

use crate::machine::{Machine, Turns};

/// Something that a thread may wait for besides the clock.
pub(super) type Key = u64;
/// Of [`Turns`].
const CHANGES: Key = 0;
/// Of a thread that waits for all others to end.
const ENDS: Key = 1;
/// What is free for others.
pub(super) const KEY_MIN: Key = 2;

pub(super) const FOREVER: Duration = Duration::MAX;
/// No run takes so long: whoever waits here hangs, outside of the simulation.
const HANGS: Duration = Duration::from_secs(120);

thread_local! {
    static ME: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// A machine with a clock of its own.
pub(super) struct Simulated {
    began: Instant,
    running: AtomicUsize,
    state: Mutex<State>,
    failed: Mutex<Sender<Result<(), String>>>,
}

struct State {
    /// Since it began.
    now: Duration,
    rng: Rng,
    threads: Vec<Simulant>,
    /// Turns of threads that did more than to find a lock taken.
    turns: u64,
}

struct Simulant {
    name: String,
    thread: Option<Thread>,
    status: Status,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Ready,
    /// Found a lock taken when there had been so many turns.
    Passing(u64),
    Waiting {
        until: Duration,
        key: Key,
    },
    Gone,
}

impl Simulated {
    /// Runs `body` and all threads that it starts, to their end. The error says who hangs or panicked; threads that
    /// are left then stay where they are.
    pub fn run<T: Send + 'static>(
        seed: u64,
        body: impl FnOnce(&Arc<Self>) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let (sender, ended) = channel();
        let state = State { now: Duration::ZERO, rng: Rng::new(seed), threads: Vec::new(), turns: 0 };
        let running = AtomicUsize::new(usize::MAX);
        let failed = Mutex::new(sender.clone());
        let machine = Arc::new(Self { began: Instant::now(), running, state: Mutex::new(state), failed });
        let (outcome, of_body) = (Arc::new(Mutex::new(None)), Arc::clone(&machine));
        let of_thread = Arc::clone(&outcome);
        let body = move || {
            let result = body(&of_body).and_then(|value| of_body.await_others().map(|()| value));
            *of_thread.lock().expect("no panic") = Some(result);
            let _ = sender.send(Ok(()));
        };
        machine.spawn("steps".into(), Box::new(body)).map_err(|e| format!("cannot start a thread: {e}"))?;
        machine.running.store(0, Ordering::SeqCst);
        machine.unpark(0);
        match ended.recv_timeout(HANGS) {
            Ok(Ok(())) => outcome.lock().expect("no panic").take().expect("it has ended"),
            Ok(Err(problem)) => Err(problem),
            Err(RecvTimeoutError::Disconnected) => Err("all threads are gone".into()),
            Err(RecvTimeoutError::Timeout) => Err(format!("it hangs: {}", machine.threads())),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics here")
    }

    /// Since it began.
    pub fn time(&self) -> Duration {
        self.state().now
    }

    pub fn instant(&self, time: Duration) -> Instant {
        self.began + time
    }

    pub fn time_of(&self, instant: Instant) -> Duration {
        instant.saturating_duration_since(self.began)
    }

    /// Until [`Simulated::notify`] of `key`, or until that time.
    pub fn wait_for(&self, key: Key, until: Duration) {
        self.switch(Status::Waiting { until, key });
    }

    pub fn sleep(&self, duration: Duration) {
        let until = self.time() + duration;
        while self.time() < until {
            self.wait_for(u64::MAX, until);
        }
    }

    pub fn notify(&self, key: Key) {
        self.notify_where(|k| k == key);
    }

    pub fn notify_where(&self, is: impl Fn(Key) -> bool) {
        for simulant in &mut self.state().threads {
            if matches!(simulant.status, Status::Waiting { key, .. } if is(key)) {
                simulant.status = Status::Ready;
            }
        }
    }

    /// Now and then somebody else is faster.
    pub fn breathe(&self) {
        if self.state().rng.chance(10) {
            self.switch(Status::Ready);
        }
    }

    /// Lets another thread run, if one can, until it is this one's turn again.
    fn switch(&self, status: Status) {
        let me = ME.get();
        let next = {
            let mut state = self.state();
            state.turns += u64::from(!matches!(status, Status::Passing(_)));
            state.threads[me].status = status;
            match state.next() {
                Some(next) => next,
                None => {
                    drop(state);
                    self.fail(format!("everybody waits for somebody else: {}", self.threads()));
                    loop {
                        std::thread::park();
                    }
                }
            }
        };
        self.running.store(next, Ordering::SeqCst);
        if status == Status::Gone {
            self.unpark(next);
        } else if next != me {
            self.unpark(next);
            self.await_turn(me);
        }
    }

    fn unpark(&self, simulant: usize) {
        if let Some(thread) = &self.state().threads[simulant].thread {
            thread.unpark();
        }
    }

    fn await_turn(&self, me: usize) {
        while self.running.load(Ordering::SeqCst) != me {
            std::thread::park();
        }
    }

    fn await_others(&self) -> Result<(), String> {
        let until = self.time() + Duration::from_secs(600);
        loop {
            let me = ME.get();
            let is_over = |(at, s): (usize, &Simulant)| at == me || s.status == Status::Gone;
            if self.state().threads.iter().enumerate().all(is_over) {
                return Ok(());
            }
            if self.time() >= until {
                return Err(format!("threads do not end: {}", self.threads()));
            }
            self.wait_for(ENDS, until);
        }
    }

    fn fail(&self, problem: String) {
        let _ = self.failed.lock().expect("no panic").send(Err(problem));
    }

    /// Those that are left, for a message.
    fn threads(&self) -> String {
        let state = self.state();
        let left = state.threads.iter().filter(|s| s.status != Status::Gone);
        let left: Vec<String> = left.map(|s| format!("{} {:?}", s.name, s.status)).collect();
        format!("at {:?}, {} runs: {}", state.now, self.running.load(Ordering::SeqCst), left.join("; "))
    }
}

impl State {
    /// Whose turn it is. The clock goes on only if nobody can run.
    fn next(&mut self) -> Option<usize> {
        loop {
            let turns = self.turns;
            let can_run = |status: Status| match status {
                Status::Ready => true,
                Status::Passing(since) => turns > since,
                Status::Waiting { .. } | Status::Gone => false,
            };
            let count = self.threads.iter().filter(|s| can_run(s.status)).count();
            if count > 0 {
                let chosen = self.rng.below(count);
                return (0..self.threads.len()).filter(|&at| can_run(self.threads[at].status)).nth(chosen);
            }
            let until = |s: &Simulant| match s.status {
                Status::Waiting { until, .. } if until < FOREVER => Some(until),
                _ => None,
            };
            self.now = self.now.max(self.threads.iter().filter_map(until).min()?);
            let now = self.now;
            for simulant in &mut self.threads {
                if until(simulant).is_some_and(|until| until <= now) {
                    simulant.status = Status::Ready;
                }
            }
        }
    }
}

/// What an `Arc` of it is handed out as.
pub(super) struct Handle(pub Arc<Simulated>);

impl Machine for Handle {
    fn now(&self) -> Instant {
        self.0.instant(self.0.time())
    }

    fn spawn(&self, name: String, run: Box<dyn FnOnce() + Send>) -> std::io::Result<()> {
        self.0.spawn(name, run)
    }

    fn turns(&self) -> Option<&dyn Turns> {
        Some(&*self.0)
    }
}

impl Simulated {
    pub fn spawn(self: &Arc<Self>, name: String, run: Box<dyn FnOnce() + Send>) -> std::io::Result<()> {
        let me = {
            let mut state = self.state();
            state.threads.push(Simulant { name: name.clone(), thread: None, status: Status::Ready });
            state.threads.len() - 1
        };
        let machine = Arc::clone(self);
        let body = move || {
            ME.set(me);
            machine.await_turn(me);
            match catch_unwind(AssertUnwindSafe(run)) {
                Ok(()) => {
                    machine.notify(ENDS);
                    let is_last = machine.state().threads.iter().filter(|s| s.status != Status::Gone).count() == 1;
                    if is_last {
                        machine.state().threads[me].status = Status::Gone;
                    } else {
                        machine.switch(Status::Gone);
                    }
                }
                Err(_) => machine.fail(format!("the thread {name} panicked")),
            }
        };
        let handle = std::thread::Builder::new().stack_size(256 << 10).spawn(body)?;
        self.state().threads[me].thread = Some(handle.thread().clone());
        Ok(())
    }
}

impl Turns for Simulated {
    fn pass(&self) {
        let turns = self.state().turns;
        self.switch(Status::Passing(turns));
    }

    fn wait(&self, deadline: Instant) {
        self.wait_for(CHANGES, self.time_of(deadline));
    }

    fn notify_all(&self) {
        self.notify(CHANGES);
    }
}
