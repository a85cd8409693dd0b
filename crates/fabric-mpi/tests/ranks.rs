//! Four ranks under mpirun: the conformance suite from rank 0 to all others at once, and a rank that is stopped.
//!
//! Run without arguments this is the test, which starts itself under mpirun once for each scene. Where mpirun is
//! missing it says so and passes.

use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use lingqu_fabric::conformance::{self, Subject};
use lingqu_fabric::{Fabric, FabricError, Joined, Link, Result, Secret, Tag};
use lingqu_fabric_mpi::{Job, WINDOW_BYTES};

const RANKS: usize = 4;
/// Nothing that works takes this long.
const PATIENCE: Duration = Duration::from_secs(120);
/// What hangs is found out after this.
const SHORT: Duration = Duration::from_millis(300);
/// The argument by which a rank knows that it is one, with the name of the scene.
const AS_RANK: &str = "--as-rank=";

fn main() -> ExitCode {
    let scene = std::env::args().find_map(|argument| argument.strip_prefix(AS_RANK).map(str::to_owned));
    if let Some(scene) = scene {
        let job = Job::get().expect("started by mpirun");
        assert_eq!(job.size(), RANKS);
        match &*scene {
            "conformance" => conforms(job),
            "stopped" => stopped(job),
            scene => panic!("no scene {scene}"),
        }
        job.leave();
        return ExitCode::SUCCESS;
    }
    if Command::new("mpirun").arg("--version").stdout(Stdio::null()).status().is_err() {
        println!("skipped: no mpirun here (Debian: openmpi-bin)");
        return ExitCode::SUCCESS;
    }
    let failed: Vec<_> = ["conformance", "stopped"].into_iter().filter(|scene| !plays(scene)).collect();
    println!("scenes that failed: {failed:?}");
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether all ranks end well, and in time.
fn plays(scene: &str) -> bool {
    println!("{scene}: {RANKS} ranks");
    let mut mpirun = Command::new("mpirun")
        .args(["-np", &RANKS.to_string()])
        .arg(std::env::current_exe().expect("it runs"))
        .arg(format!("{AS_RANK}{scene}"))
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .env("OMPI_MCA_rmaps_base_oversubscribe", "1")
        .spawn()
        .expect("mpirun starts");
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = mpirun.try_wait().expect("it is ours") {
            return status.success();
        }
        if Instant::now() > end {
            println!("{scene}: still running after {PATIENCE:?}");
            let _ = mpirun.kill();
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

fn shortly() -> Instant {
    Instant::now() + SHORT
}

/// A rank that does what callers ask for, until rank 0 ends the job.
fn serve(job: &'static Job) {
    let listener = job.fabric(job.secret()).listen(&Job::address(job.rank())).expect("its own rank");
    let end = conformance::serve(&*listener);
    assert!(matches!(end, FabricError::Ended), "{end}");
}

/// Once the rank listens.
fn connect(fabric: &dyn Fabric, address: &str) -> Joined {
    let end = soon();
    loop {
        match fabric.connect(address, b"", soon()) {
            Ok(joined) => return joined,
            Err(FabricError::Io { what: "connect", .. }) if Instant::now() < end => std::thread::yield_now(),
            Err(error) => panic!("{address}: {error}"),
        }
    }
}

fn conforms(job: &'static Job) {
    if job.rank() > 0 {
        return serve(job);
    }
    let ours = job.fabric(job.secret());
    let stranger = job.fabric(Secret::new(b"another secret of tests").expect("long enough"));
    let check = |rank: usize| {
        let address = Job::address(rank);
        drop(connect(&ours, &address));
        let nobody = Job::address(0); // which does not listen
        conformance::run(&Subject { fabric: &ours, stranger: &stranger, address: &address, nobody: &nobody })
    };
    let failed: Vec<Vec<String>> = std::thread::scope(|scope| {
        let runs: Vec<_> = (1..RANKS).map(|rank| scope.spawn(move || check(rank))).collect();
        runs.into_iter().map(|run| run.join().expect("no panic")).collect()
    });
    assert!(failed.iter().all(Vec::is_empty), "{failed:#?}");
    for (address, says) in [("mpi:4", "rank 4 is none of 4"), ("mpi:x", "write mpi:RANK"), ("mpi:", "write mpi:RANK")] {
        let error = ours.connect(address, b"", soon()).err().expect(says).to_string();
        assert!(error.contains(says), "{error}");
    }
    let error = ours.listen("mpi:1").err().expect("another rank").to_string();
    assert!(error.contains("this is rank 0"), "{error}");
}

fn echo(link: &mut dyn Link, bytes: usize, deadline: Instant) -> Result<()> {
    let message = vec![7; bytes];
    link.send(Tag { kind: 1, epoch: 0, sequence: 0 }, &[&message], deadline)?;
    let (_, echoed) = link.receive(bytes, deadline)?;
    assert!(echoed == message);
    Ok(())
}

/// Rank 1 is stopped while links to it are open and while new ones are made; the others go on, and so does it.
fn stopped(job: &'static Job) {
    match job.rank() {
        0 => {}
        1 => {
            // Whoever calls is told whom to stop; then links are served as everywhere.
            let listener = job.fabric(job.secret()).listen(&Job::address(1)).expect("its own rank");
            let caller = listener.accept().expect("rank 0");
            let pid = std::process::id().to_string();
            let link = caller.admit(&mut |_| Ok(pid.clone().into_bytes()), soon()).expect("admitted");
            let end = conformance::serve(&*listener);
            assert!(matches!(end, FabricError::Ended), "{end}");
            return drop(link);
        }
        _ => return serve(job),
    }
    let fabric = job.fabric(job.secret());
    let first = connect(&fabric, "mpi:1");
    let pid = String::from_utf8(first.answer).expect("a number");
    let signal = |name: &str| {
        assert!(Command::new("kill").args([name, &pid]).status().expect("kill runs").success(), "{name} {pid}");
    };
    let (mut to_stopped, mut other) = (connect(&fabric, "mpi:1").link, connect(&fabric, "mpi:2").link);
    let mut unused = connect(&fabric, "mpi:1").link;
    echo(&mut *to_stopped, 100, soon()).expect("it runs");
    signal("-STOP");
    let timed_out = |outcome: Result<()>| {
        assert!(matches!(outcome, Err(FabricError::TimedOut)), "{outcome:?}");
    };
    timed_out(echo(&mut *unused, 100, shortly()));
    timed_out(echo(&mut *to_stopped, WINDOW_BYTES + 1, shortly()));
    drop((to_stopped, unused));
    for _ in 0..20 {
        timed_out(fabric.connect("mpi:1", b"", Instant::now() + SHORT / 10).map(|_| ()));
        echo(&mut *other, 1 << 20, soon()).expect("it runs");
    }
    signal("-CONT");
    let end = soon();
    let mut again = loop {
        match fabric.connect("mpi:1", b"", soon()) {
            Ok(joined) => break joined.link,
            Err(FabricError::TimedOut) if Instant::now() < end => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    };
    echo(&mut *again, 3 << 20, soon()).expect("it runs again");
}
