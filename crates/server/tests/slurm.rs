//! `/deploy/slurm/lingqu.sbatch`, run as Slurm runs it: with stand-ins for its programs, on loopback.

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::golden_folder;

/// Nothing that works takes this long.
const PATIENCE: Duration = Duration::from_secs(120);

const SCONTROL: &str = "#!/usr/bin/env bash
[ \"$*\" = \"show hostnames node[0-2]\" ] && printf '127.0.0.1\\n127.0.0.2\\n127.0.0.3\\n'
";
/// Runs the step here; its process is the one whose number is left in the folder under the step's name.
const SRUN: &str = "#!/usr/bin/env bash
while [[ $1 == --* ]]; do
    case $1 in
        --job-name=*) name=${1#*=} ;;
        --output=*) output=${1#*=} ;;
    esac
    shift
done
echo $$ > \"$LINGQU_FOLDER/$name.new\"
mv \"$LINGQU_FOLDER/$name.new\" \"$LINGQU_FOLDER/$name.pid\"
exec \"$@\" >> \"$output\" 2>&1
";
const SQUEUE: &str = "#!/usr/bin/env bash
for file in \"$LINGQU_FOLDER\"/*.pid; do
    name=$(basename \"$file\" .pid)
    echo \"7.$name $name\"
done
";
/// Does what it is asked and says that it failed, as Slurm 22.05 does.
const SCANCEL: &str = "#!/usr/bin/env bash
[ \"$1\" = --signal=TERM ] && kill -TERM \"$(cat \"$LINGQU_FOLDER/${2#7.}.pid\")\"
exit 225
";

/// The batch script; ended when dropped, so that a failed test leaves nothing behind.
struct Job {
    script: Child,
    folder: PathBuf,
}

impl Job {
    fn start() -> Self {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("slurm");
        let _ = std::fs::remove_dir_all(&folder);
        let programs = folder.join("bin");
        std::fs::create_dir_all(&programs).expect("a folder for tests");
        for (name, text) in [("scontrol", SCONTROL), ("srun", SRUN), ("squeue", SQUEUE), ("scancel", SCANCEL)] {
            std::fs::write(programs.join(name), text).expect("written");
            let executable = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(programs.join(name), executable).expect("made executable");
        }
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").expect("a PATH"));
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/slurm/lingqu.sbatch");
        let script = Command::new("bash")
            .arg(script)
            .env("PATH", path)
            .env("SLURM_JOB_ID", "7")
            .env("SLURM_JOB_NODELIST", "node[0-2]")
            .env("SLURM_SUBMIT_DIR", &folder)
            .env("LINGQU", env!("CARGO_BIN_EXE_lingqu"))
            .env("LINGQU_MODEL", golden_folder().join("../../../models/default"))
            .env("LINGQU_FOLDER", &folder)
            .env("LINGQU_PORT", two_free_ports().to_string())
            .env("LINGQU_OPTIONS", "--threads=1")
            .env("LINGQU_SERVE_OPTIONS", "--http-addr=127.0.0.1:0 --grpc-addr=127.0.0.1:0")
            .env("LINGQU_RESTART_S", "0")
            .stdout(Stdio::null())
            .spawn()
            .expect("bash is there");
        Self { script, folder }
    }

    /// What follows `begin` in the `nth` line of a log that begins so.
    fn logged(&self, log: &str, begin: &str, nth: usize) -> String {
        self.wait_for(&format!("{begin:?} in {log}"), || {
            let text = std::fs::read_to_string(self.folder.join(log)).ok()?;
            // The last line may not be whole yet.
            let whole = &text[..=text.rfind('\n')?];
            whole.lines().filter_map(|line| line.strip_prefix(begin)).nth(nth).map(str::to_owned)
        })
    }

    fn wait_for<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(Instant::now() < until, "no {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The process of a step.
    fn pid(&self, step: &str) -> String {
        std::fs::read_to_string(self.folder.join(format!("{step}.pid"))).expect("a step ran there").trim().to_owned()
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if let Ok(None) = self.script.try_wait() {
            signal("TERM", &self.script.id().to_string());
            let until = Instant::now() + PATIENCE;
            while Instant::now() < until && matches!(self.script.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = self.script.kill();
        }
    }
}

fn signal(name: &str, pid: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), pid]).status().expect("kill runs").success());
}

/// The first of two ports side by side that nobody listens at.
fn two_free_ports() -> u16 {
    for _ in 0..100 {
        let first = TcpListener::bind("0.0.0.0:0").expect("a port");
        let port = first.local_addr().expect("bound").port();
        if port < u16::MAX && TcpListener::bind(("0.0.0.0", port + 1)).is_ok() {
            return port;
        }
    }
    panic!("no two ports are free")
}

/// The text that the server at this address gives.
fn complete(address: &str) -> String {
    let body = r#"{"prompt": "秋天", "max_tokens": 12, "seed": 11}"#;
    let mut stream = TcpStream::connect(address).expect("the port is open");
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json";
    write!(stream, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).expect("taken");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("UTF-8");
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    let (_, text) = reply.split_once("\"text\":\"").expect("a text");
    text.split('"').next().expect("it ends").to_owned()
}

#[test]
fn the_batch_script_serves_restarts_and_drains() {
    let mut job = Job::start();
    let address = job.logged("serve.log", "lingqu: HTTP on ", 0);
    let text = complete(&address);
    assert!(!text.is_empty());

    // A worker that dies is started again, and answers stay the same.
    signal("KILL", &job.pid("worker-1"));
    assert_eq!(complete(&address), text);
    job.logged("worker-1.log", "lingqu: worker 1 on ", 1);
    assert_eq!(complete(&address), text);

    let steps = ["serve", "worker-0", "worker-1"].map(|step| job.pid(step));
    signal("TERM", &job.script.id().to_string());
    job.logged("serve.log", "lingqu: draining", 0);
    let until = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = job.script.try_wait().expect("the child is ours") {
            break status;
        }
        assert!(Instant::now() < until, "the script does not end");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(status.code(), Some(0));
    for pid in steps {
        assert!(!Path::new("/proc").join(&pid).exists(), "process {pid} is left");
    }
    let secret = std::fs::metadata(job.folder.join("cluster.secret")).expect("written");
    assert_eq!(secret.permissions().mode() & 0o777, 0o600);
}
