//! A team of threads that share the work of one op: short spins between ops, sleep when nothing comes.

use std::any::Any;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lingqu_backend::BackendError;

/// How long a thread spins for the next op before it sleeps: longer than the gaps between the ops of a step, and
/// between steps. Waking takes a virtual machine long, and often to a core that is taken: with 100 us in place of 5 ms
/// decode was a sixth slower and prompts a quarter.
const SPIN_US_MAX: u64 = 5_000;

/// After so long it spins only while nobody else wants the core, such as workers of a cluster on the same machine.
const SPIN_ALONE_US: u64 = 50;

type Job = *const (dyn Fn(usize) + Sync);

/// The calling thread is member 0; the others wait in the background.
pub(crate) struct Team {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// One op at a time.
    gate: Mutex<()>,
}

struct Shared {
    /// Counts jobs; a change means that `job` is new.
    epoch: AtomicUsize,
    stop: AtomicBool,
    job: UnsafeCell<Option<Job>>,
    /// Members that have not finished the job.
    left: AtomicUsize,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    done: Condvar,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is written only while no member works (`left` is 0, the gate is held) and read only after the epoch's
// release store has been seen; the pointer is to a `Sync` closure that outlives the job (see `run`).
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Team {
    /// A team of `members` threads, the caller among them.
    pub fn new(members: usize) -> Result<Self, BackendError> {
        let shared = Arc::new(Shared {
            epoch: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            job: UnsafeCell::new(None),
            left: AtomicUsize::new(0),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            done: Condvar::new(),
            panic: Mutex::new(None),
        });
        let mut team = Self { shared, threads: Vec::new(), gate: Mutex::new(()) };
        for member in 1..members {
            let shared = team.shared.clone();
            let thread = std::thread::Builder::new().name(format!("lingqu-cpu-{member}"));
            let thread = thread.spawn(move || shared.serve(member)).map_err(|error| BackendError::Device {
                backend: "cpu".into(),
                problem: format!("thread {member} of {members} could not start: {error}"),
            })?;
            team.threads.push(thread);
        }
        Ok(team)
    }

    /// Members, the caller among them.
    pub fn members(&self) -> usize {
        self.threads.len() + 1
    }

    /// Runs `job(member)` once on each member and waits for all. A panic of any member goes on in the caller, after
    /// all have ended.
    pub fn run(&self, job: impl Fn(usize) + Sync) {
        if self.threads.is_empty() {
            return job(0);
        }
        let _one_at_a_time = lock(&self.gate);
        let job: &(dyn Fn(usize) + Sync) = &job;
        // SAFETY: only the lifetime changes; the members are done with the job before this call returns.
        let job_pointer: Job =
            unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(job) };
        let shared = &*self.shared;
        // SAFETY: the gate is held and the last job's members are done: nobody reads `job` now.
        unsafe { *shared.job.get() = Some(job_pointer) };
        shared.left.store(self.threads.len(), Ordering::SeqCst);
        shared.epoch.fetch_add(1, Ordering::SeqCst);
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            let _held = lock(&shared.sleep);
            shared.wake.notify_all();
        }
        let own = catch_unwind(AssertUnwindSafe(|| job(0)));
        shared.wait_for_members();
        let theirs = lock(&shared.panic).take();
        if let Some(panic) = own.err().or(theirs) {
            resume_unwind(panic);
        }
    }

    /// The same, on the calling thread alone where `work` (values touched, roughly) is not worth waking others.
    pub fn run_if_worth(&self, work: usize, job: impl Fn(usize, usize) + Sync) {
        const WORTH_VALUES: usize = 16 << 10;
        if work < WORTH_VALUES || self.members() == 1 {
            return job(0, 1);
        }
        let members = self.members();
        self.run(|member| job(member, members));
    }
}

/// The part of `0..total` that is `member`'s.
pub(crate) fn share(total: usize, member: usize, members: usize) -> Range<usize> {
    total * member / members..total * (member + 1) / members
}

impl Shared {
    fn serve(&self, member: usize) {
        let mut seen = 0;
        loop {
            self.wait_for_job(seen);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            seen += 1;
            // SAFETY: the epoch has changed, so `job` is set and stays until `left` has come to 0.
            let job = unsafe { (*self.job.get()).expect("a job comes with each epoch") };
            // SAFETY: `run` keeps the closure alive until `left` is 0.
            let ended = catch_unwind(AssertUnwindSafe(|| unsafe { (*job)(member) }));
            if let Err(panic) = ended {
                lock(&self.panic).get_or_insert(panic);
            }
            if self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
                let _held = lock(&self.sleep);
                self.done.notify_one();
            }
        }
    }

    /// Returns when the epoch is no longer `seen`.
    fn wait_for_job(&self, seen: usize) {
        let new = || self.epoch.load(Ordering::SeqCst) != seen;
        if spin_until(new) {
            return;
        }
        let mut held = lock(&self.sleep);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while !new() {
            held = self.wake.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    fn wait_for_members(&self) {
        let done = || self.left.load(Ordering::SeqCst) == 0;
        if spin_until(done) {
            return;
        }
        let mut held = lock(&self.sleep);
        while !done() {
            held = self.done.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Spins for a short while; whether the condition came true.
fn spin_until(condition: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    loop {
        for _ in 0..64 {
            if condition() {
                return true;
            }
            std::hint::spin_loop();
        }
        let waited = start.elapsed();
        if waited > Duration::from_micros(SPIN_US_MAX) {
            return condition();
        }
        if waited > Duration::from_micros(SPIN_ALONE_US) {
            std::thread::yield_now();
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        {
            let _held = lock(&self.shared.sleep);
            self.shared.wake.notify_all();
        }
        for thread in self.threads.drain(..) {
            // A member ends only by `stop`; its panics were handed to callers.
            let _ = thread.join();
        }
    }
}

/// A pointer into memory of which each member writes a part of its own.
pub(crate) struct Shares<T> {
    pointer: *mut T,
    len: usize,
}

impl<T> Clone for Shares<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Shares<T> {}

// SAFETY: the slices that come out are disjoint between threads: the duty of the callers of `part`.
unsafe impl<T: Send> Sync for Shares<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Shares<T> {}

impl<T> Shares<T> {
    pub fn new(all: &mut [T]) -> Self {
        Self { pointer: all.as_mut_ptr(), len: all.len() }
    }

    /// The values `range`.
    ///
    /// # Safety
    /// The memory that this was made of must still be borrowed, and no two live parts may overlap.
    #[allow(clippy::mut_from_ref)] // that is its purpose: see the safety section
    pub unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "values {range:?} of {}", self.len);
        // SAFETY: within the slice that this was made of; disjoint by the caller's word.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_runs_each_job_once() {
        for members in 1..5 {
            let team = Team::new(members).unwrap();
            for pause_us in [0, 0, 0, 12_000, 0, 12_000] {
                std::thread::sleep(Duration::from_micros(pause_us));
                let counts: Vec<AtomicUsize> = (0..members).map(|_| AtomicUsize::new(0)).collect();
                team.run(|member| {
                    counts[member].fetch_add(1, Ordering::SeqCst);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::SeqCst) == 1), "{counts:?}");
            }
        }
    }

    #[test]
    fn shares_cover_everything_once() {
        for (total, members) in [(0, 3), (1, 3), (7, 3), (12, 4), (3, 1)] {
            let mut next = 0;
            for member in 0..members {
                let part = share(total, member, members);
                assert_eq!(part.start, next);
                next = part.end;
            }
            assert_eq!(next, total);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_lives_on() {
        let team = Team::new(3).unwrap();
        for bad in 0..3 {
            let caught = catch_unwind(AssertUnwindSafe(|| team.run(|member| assert!(member != bad, "member {bad}"))));
            let panic = caught.expect_err("a member has panicked");
            assert_eq!(panic.downcast_ref::<String>(), Some(&format!("member {bad}")));
            team.run(|_| {});
        }
    }

    #[test]
    fn callers_take_turns() {
        let team = Team::new(2).unwrap();
        let count = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        team.run(|_| {
                            count.fetch_add(1, Ordering::SeqCst);
                        });
                    }
                });
            }
        });
        assert_eq!(count.load(Ordering::SeqCst), 3 * 200 * 2);
    }
}
