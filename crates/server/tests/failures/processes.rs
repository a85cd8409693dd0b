//! The processes of one run, and what is done to them.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use lingqu_testkit::etcd::Etcd;
use lingqu_testkit::proxy::From;
use lingqu_testkit::road::{Condition, Road};

use crate::plan::{Event, Fault, Plan};
use crate::site::{Place, Site};
use crate::support::binary;
use crate::support::worker::{Worker, listed};

/// What delayed packets take longer, and how much of that is by chance.
const DELAY: Duration = Duration::from_millis(5);
const JITTER: Duration = Duration::from_millis(10);
const LOSS_PERCENT: usize = 3;

/// Files of all runs.
pub struct Folder {
    path: PathBuf,
    /// The default model with another byte in its configuration.
    other_model: String,
}

impl Folder {
    pub fn new() -> Self {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("failures-{}", std::process::id()));
        std::fs::create_dir_all(path.join("model")).expect("a folder for tests");
        std::fs::write(path.join("secret"), "an open secret of tests").expect("written");
        std::fs::write(path.join("other-secret"), "another secret of tests").expect("written");
        let model = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/default");
        for entry in std::fs::read_dir(&model).expect("the default model") {
            let from = entry.expect("a file").path();
            let to = path.join("model").join(from.file_name().expect("a file"));
            match from.ends_with("config.json") {
                true => std::fs::write(to, std::fs::read_to_string(from).expect("text") + " ").expect("written"),
                false => std::os::unix::fs::symlink(from.canonicalize().expect("it is there"), to).expect("linked"),
            }
        }
        let other_model = path.join("model").to_str().expect("a UTF-8 path").to_owned();
        Self { path, other_model }
    }

    /// Writes a configuration and gives its path.
    fn write(&self, name: &str, secret: &str, addresses: &[String], rest: &str) -> String {
        let mut text = format!("secret_file = \"{secret}\"\n{}", rest.split('[').next().expect("a first part"));
        text += &listed(addresses);
        text += rest.find('[').map_or("", |at| &rest[at..]);
        let path = self.path.join(format!("{name}.toml"));
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("a UTF-8 path").to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// A worker, where it runs, and the way there. Dropped in this order.
struct Member {
    process: Option<Worker>,
    stub: Option<OtherVersion>,
    road: Option<Road>,
    place: Place,
    /// Where its process listens.
    address: String,
}

pub struct Workers {
    members: Vec<Member>,
    /// Configuration of a worker that belongs, and of one that does not.
    files: [String; 2],
    other_model: String,
    has_netem: bool,
    has_links: bool,
    /// Where workers are found, if not in a file.
    etcd: Option<EtcdSite>,
    /// How the server is told of them.
    pub of_server: Vec<String>,
}

struct EtcdSite {
    etcd: Etcd,
    secret: String,
    settings: String,
}

impl EtcdSite {
    fn start(folder: &Folder, site: &Site, settings: &str) -> Self {
        let host = if site.namespaces.is_ok() { "0.0.0.0" } else { "127.0.0.1" };
        let path = |name: &str| folder.path.join(name).to_str().expect("a UTF-8 path").to_owned();
        std::fs::write(path("settings.toml"), settings).expect("written");
        let etcd = Etcd::start_as(&folder.path.join("etcd"), host, None).expect("the site has one");
        Self { etcd, secret: path("secret"), settings: path("settings.toml") }
    }

    /// What says where the cluster is, to who calls this host `host`.
    fn args(&self, host: &str) -> Vec<String> {
        let at = format!("etcd://{host}:{}/failures", self.etcd.port());
        let args = ["--cluster", &at, "--cluster-secret", &self.secret, "--cluster-config", &self.settings];
        args.map(str::to_owned).to_vec()
    }
}

impl Workers {
    pub fn start(plan: &Plan, site: &Site, folder: &Folder) -> Self {
        let unknown = vec!["127.0.0.1:1".to_owned(); plan.workers];
        let files = ["secret", "other-secret"].map(|secret| folder.write(secret, secret, &unknown, ""));
        let member = |number: usize| {
            let place = Place::new(site, plan.seed, number);
            let address = place.listen.clone();
            Member { process: None, stub: None, road: None, place, address }
        };
        let recovery_ms = if plan.events.iter().any(|event| event.fault.is_of_all()) { 1500 } else { 30_000 };
        let wire = if plan.is_narrow { "bf16" } else { "f32" };
        let (redundancy, least) = (plan.redundancy, if plan.has_etcd() { plan.workers } else { 1 });
        let rest = format!(
            "wire = \"{wire}\"\n[placement]\nredundancy = {redundancy:.1}\nworkers_min = {least}\n[deadlines]\n\
             step_ms = 1500\nconnect_ms = 2000\nheartbeat_ms = 500\nrecovery_ms = {recovery_ms}\nlease_ms = 3000\n"
        );
        let mut workers = Self {
            members: (0..plan.workers).map(member).collect(),
            files,
            other_model: folder.other_model.clone(),
            has_netem: site.netem.is_ok(),
            has_links: site.namespaces.is_ok(),
            etcd: plan.has_etcd().then(|| EtcdSite::start(folder, site, &rest)),
            of_server: Vec::new(),
        };
        (0..plan.workers).for_each(|worker| workers.run(worker, None));
        for event in &plan.events {
            let needs_road = match event.fault {
                Fault::Delay | Fault::Drop => !workers.has_netem,
                Fault::Cut => !workers.has_links,
                fault => fault.needs_road(),
            };
            let member = &mut workers.members[event.worker];
            if needs_road && member.road.is_none() {
                member.road = Some(Road::start(&member.address, plan.seed).expect("a free port"));
            }
        }
        let way = |member: &Member| member.road.as_ref().map_or(member.address.clone(), Road::address);
        let ways: Vec<String> = workers.members.iter().map(way).collect();
        workers.of_server = match &workers.etcd {
            Some(etcd) => etcd.args("127.0.0.1"),
            None => vec!["--cluster".into(), folder.write("serve", "secret", &ways, &rest)],
        };
        workers
    }

    /// Starts the process of a worker, or one that does not belong.
    fn run(&mut self, worker: usize, impostor: Option<Fault>) {
        let Self { members, files, other_model, etcd, .. } = self;
        let member = &mut members[worker];
        member.process = None;
        let mut command = member.place.command(&binary());
        command.args(["worker", "--id", &worker.to_string(), "--threads", "1", "--listen", &member.address]);
        match etcd {
            Some(etcd) => command.args(etcd.args(&member.place.home)),
            None => command.args(["--cluster", &files[usize::from(impostor == Some(Fault::WrongSecret))]]),
        };
        if impostor == Some(Fault::WrongCheckpoint) {
            command.args(["--model", other_model]);
        }
        let process = Worker::run(command, worker);
        member.address.clone_from(&process.address);
        member.process = Some(process);
    }

    pub fn begin(&mut self, event: &Event) {
        let all = self.members.len();
        let member = &mut self.members[event.worker];
        match event.fault {
            Fault::Kill | Fault::Restart => member.process = None,
            Fault::Stop => member.signal("STOP"),
            Fault::Cut if self.has_links => member.place.set_link("down"),
            Fault::Cut => member.road().set(Condition::Blocked),
            Fault::Reset => member.road().reset(),
            Fault::Delay if self.has_netem => member.place.set_netem(&["delay", "5ms", "10ms"]),
            Fault::Delay => member.road().set(Condition::Slow { delay: DELAY, jitter: JITTER }),
            Fault::Drop if self.has_netem => member.place.set_netem(&["loss", &format!("{LOSS_PERCENT}%")]),
            Fault::Drop => member.road().set(Condition::Lossy { percent: LOSS_PERCENT }),
            Fault::GarbleQuestion => member.road().garble(From::Caller),
            Fault::GarbleAnswer => member.road().garble(From::Callee),
            Fault::WrongCheckpoint | Fault::WrongSecret => self.run(event.worker, Some(event.fault)),
            Fault::WrongVersion => {
                let stub = OtherVersion::start();
                member.process = None;
                member.road().lead_to(&stub.address);
                member.stub = Some(stub);
            }
            Fault::KillEtcd => self.etcd().kill(),
            Fault::LoseEtcd => self.etcd().lose_data(),
            Fault::KillAll => self.members.iter_mut().for_each(|member| member.process = None),
            Fault::StopAll => (0..all).for_each(|worker| self.members[worker].signal("STOP")),
        }
    }

    pub fn end(&mut self, event: &Event) {
        let all = self.members.len();
        let member = &mut self.members[event.worker];
        match event.fault {
            Fault::Kill | Fault::Restart | Fault::WrongCheckpoint | Fault::WrongSecret => self.run(event.worker, None),
            Fault::Stop => member.signal("CONT"),
            Fault::Cut if self.has_links => member.place.set_link("up"),
            Fault::Delay | Fault::Drop if self.has_netem => member.place.set_netem(&[]),
            Fault::Cut | Fault::Delay | Fault::Drop => member.road().set(Condition::Open),
            Fault::Reset | Fault::GarbleQuestion | Fault::GarbleAnswer => {}
            Fault::WrongVersion => {
                self.run(event.worker, None);
                let member = &mut self.members[event.worker];
                member.stub = None;
                member.road().lead_to(&member.address);
            }
            Fault::KillEtcd | Fault::LoseEtcd => self.etcd().restart(),
            Fault::KillAll => (0..all).for_each(|worker| self.run(worker, None)),
            Fault::StopAll => (0..all).for_each(|worker| self.members[worker].signal("CONT")),
        }
    }

    fn etcd(&mut self) -> &mut Etcd {
        &mut self.etcd.as_mut().expect("the plan said so").etcd
    }
}

impl Member {
    fn signal(&self, name: &str) {
        self.process.as_ref().expect("it runs").signal(name);
    }

    fn road(&self) -> &Road {
        self.road.as_ref().expect("the plan said so")
    }
}

/// Somebody who speaks version 2 of the frames (`crates/fabric/src/frame.rs`) to whoever calls.
struct OtherVersion {
    address: String,
}

impl OtherVersion {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let mut head = [0; 36];
        head[..4].copy_from_slice(b"LQFB");
        head[4] = 2;
        let checksum = crc32(&head[..32]);
        head[32..].copy_from_slice(&checksum.to_le_bytes());
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let answer = |stream: &mut TcpStream| {
                    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
                    stream.read_exact(&mut [0; 36])?;
                    stream.write_all(&head)?;
                    stream.read(&mut [0; 1]).map(|_| ())
                };
                let _ = answer(&mut stream);
            }
        });
        Self { address }
    }
}

/// CRC-32 of Ethernet, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}
