//! A cluster whose processes are four ranks of an MPI job: the same text as one process. Built with the feature `mpi`;
//! where mpirun is missing it says so and passes.
#![cfg(feature = "mpi")]

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const BINARY: &str = env!("CARGO_BIN_EXE_lingqu");
/// Nothing that works takes this long.
const PATIENCE: Duration = Duration::from_secs(120);
const GENERATE: [&str; 9] =
    ["generate", "--prompt", "秋天", "--max-tokens", "20", "--seed", "11", "--temperature", "1"];

struct Run {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Runs to its end; killed if there is none.
fn run(command: &mut Command) -> Run {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let (mut stdout, mut stderr) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
    let read = |from: &mut dyn std::io::Read| {
        let mut text = String::new();
        from.read_to_string(&mut text).expect("output is UTF-8");
        text
    };
    std::thread::scope(|scope| {
        let (stdout, stderr) = (scope.spawn(move || read(&mut stdout)), scope.spawn(move || read(&mut stderr)));
        let end = Instant::now() + PATIENCE;
        while child.try_wait().expect("it is ours").is_none() {
            if Instant::now() > end {
                let _ = child.kill();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let code = child.wait().expect("it is ours").code();
        Run { code, stdout: stdout.join().expect("no panic"), stderr: stderr.join().expect("no panic") }
    })
}

/// `first` as rank 0, and `workers` ranks more; none without mpirun.
fn mpirun(first: &[&str], workers: usize) -> Option<Run> {
    if Command::new("mpirun").arg("--version").stdout(Stdio::null()).status().is_err() {
        println!("skipped: no mpirun here (Debian: openmpi-bin)");
        return None;
    }
    let mut mpirun = Command::new("mpirun");
    mpirun
        .args(["-np", "1", BINARY])
        .args(first)
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .env("OMPI_MCA_rmaps_base_oversubscribe", "1");
    if workers > 0 {
        mpirun.args([":", "-np", &workers.to_string(), BINARY, "worker", "--cluster", "mpi:", "--threads", "1"]);
    }
    Some(run(&mut mpirun))
}

#[test]
fn four_ranks_say_what_one_process_says() {
    let alone = run(Command::new(BINARY).args(GENERATE));
    assert_eq!(alone.code, Some(0), "{}", alone.stderr);
    let first = [&GENERATE[..], &["--cluster", "mpi:"]].concat();
    let Some(together) = mpirun(&first, 3) else { return };
    assert_eq!((together.code, &together.stdout), (Some(0), &alone.stdout), "{}", together.stderr);
    assert!(together.stderr.contains("exchange, for each row and layer: "), "{}", together.stderr);
    assert!(!together.stderr.contains("fenced"), "{}", together.stderr);
}

#[test]
fn a_job_of_another_shape_is_refused() {
    let first = [&GENERATE[..], &["--cluster", "mpi:"]].concat();
    let Some(alone) = mpirun(&first, 0) else { return };
    assert!(alone.code == Some(2) && alone.stderr.contains("the MPI job has no workers"), "{}", alone.stderr);
    let Some(worker) = mpirun(&["worker", "--cluster", "mpi:"], 1) else { return };
    assert!(worker.code == Some(2) && worker.stderr.contains("rank 0 serves"), "{}", worker.stderr);
}
