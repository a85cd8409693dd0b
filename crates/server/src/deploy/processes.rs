//! `/deploy/systemd`, `/deploy/Containerfile` and the ranks of `/deploy/slurm/lingqu-mpi.sbatch`. The other batch
//! script is run: `tests/slurm.rs`.

use std::collections::BTreeMap;

use super::{folder, option, read, serve, worker};

/// Lines `Key=value` of a unit, in order; the values of `Environment=` apart.
struct Unit {
    lines: Vec<(String, String)>,
    environment: BTreeMap<String, String>,
}

impl Unit {
    fn read(name: &str) -> Self {
        let mut unit = Self { lines: Vec::new(), environment: BTreeMap::new() };
        for line in read(&folder().join("systemd").join(name)).lines() {
            let line = line.trim();
            if line.is_empty() || line.starts_with(['#', '[']) {
                continue;
            }
            let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("{name}: {line}"));
            if key == "Environment" {
                let pairs = value.split_whitespace().map(|pair| pair.split_once('=').expect("NAME=value"));
                unit.environment.extend(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())));
            }
            unit.lines.push((key.to_owned(), value.to_owned()));
        }
        unit
    }

    fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.lines.iter().filter(move |line| line.0 == key).map(|line| line.1.as_str())
    }

    /// The value that holds: the last one.
    fn last<'a>(&'a self, key: &'a str) -> &'a str {
        self.all(key).last().unwrap_or_else(|| panic!("no {key}"))
    }

    /// Words of `ExecStart` after the binary, as systemd makes them: `$NAME` alone becomes words, `${NAME}` one.
    fn words(&self, environment: &BTreeMap<String, String>) -> Vec<String> {
        let mut words = self.last("ExecStart").split_whitespace();
        assert_eq!(words.next(), Some("/usr/local/bin/lingqu"));
        let value = |name: &str| environment.get(name).unwrap_or_else(|| panic!("{name} has no value")).clone();
        let mut out = Vec::new();
        for word in words {
            if let Some(name) = word.strip_prefix("${").and_then(|word| word.strip_suffix('}')) {
                out.push(value(name));
            } else if let Some(name) = word.strip_prefix('$') {
                out.extend(value(name).split_whitespace().map(str::to_owned));
            } else {
                out.push(word.replace("%i", "3").replace("%d", "/run/credentials/unit"));
            }
        }
        out
    }

    /// Files that the process finds in its credentials' folder.
    fn credentials(&self) -> Vec<&str> {
        self.all("LoadCredential").filter_map(|line| line.split(':').next()).collect()
    }
}

#[test]
fn units_start_what_they_say_and_give_it_time_to_end() {
    let unit = Unit::read("lingqu.service");
    let drain_s: u64 = unit.environment["LINGQU_DRAIN_S"].parse().expect("seconds");
    let alone = unit.words(&unit.environment);
    assert_eq!((serve(&alone).drain_timeout, option(&alone, "--cluster")), (drain_s, None));
    let stop_s: u64 = unit.last("TimeoutStopSec").parse().expect("seconds");
    assert!(drain_s < stop_s, "{drain_s} s to drain, killed after {stop_s} s");

    let mut with_options = unit.environment.clone();
    with_options.insert("LINGQU_OPTIONS".into(), "--grpc-addr 0.0.0.0:50051 --backend cpu".into());
    assert!(serve(&unit.words(&with_options)).grpc_addr.ip().is_unspecified());

    let drop_in = Unit::read("lingqu.service.d/cluster.conf");
    assert_eq!(drop_in.all("ExecStart").next(), Some(""), "the first command must be taken back");
    let together = drop_in.words(&unit.environment);
    assert_eq!(serve(&together).drain_timeout, drain_s);
    let worker_unit = Unit::read("lingqu-worker@.service");
    let apart = worker_unit.words(&worker_unit.environment);
    assert_eq!((option(&apart, "--id"), worker(&apart).listen), (Some("3"), None));
    for (unit, words) in [(&drop_in, &together), (&worker_unit, &apart)] {
        assert_eq!(option(words, "--cluster"), Some("/run/credentials/unit/cluster.toml"));
        assert_eq!(unit.credentials(), ["cluster.toml", "cluster.secret"]);
    }
}

#[test]
fn units_are_hardened_alike() {
    let [server, worker] = ["lingqu.service", "lingqu-worker@.service"].map(Unit::read);
    let own =
        ["Description", "Environment", "EnvironmentFile", "ExecStart", "LoadCredential", "Restart", "TimeoutStopSec"];
    let common = |unit: &Unit| -> Vec<(String, String)> {
        unit.lines.iter().filter(|(key, _)| !own.contains(&key.as_str())).cloned().collect()
    };
    assert_eq!(common(&server), common(&worker));
    for (key, value) in [("DynamicUser", "yes"), ("ProtectSystem", "strict"), ("NoNewPrivileges", "yes")] {
        assert_eq!(server.last(key), value);
    }
    assert_eq!(server.last("CapabilityBoundingSet"), "");
}

#[test]
fn the_image_serves_where_its_health_check_asks() {
    let file = read(&folder().join("Containerfile")).replace("\\\n", " ");
    let line =
        |start: &str| file.lines().find_map(|line| line.strip_prefix(start)).unwrap_or_else(|| panic!("no {start}"));
    let words = |json: &str| -> Vec<String> { serde_json::from_str(json).expect("a list of words") };
    assert_eq!(words(line("ENTRYPOINT ")), ["/usr/local/bin/lingqu"]);
    assert!(line("COPY --from=build ").ends_with(" /usr/local/bin/lingqu"));
    let args = serve(&words(line("CMD ")));
    let exposed: Vec<&str> = line("EXPOSE ").split_whitespace().collect();
    for address in [args.http_addr, args.grpc_addr] {
        assert!(address.ip().is_unspecified() && exposed.contains(&address.port().to_string().as_str()), "{address}");
    }
    let check = line("HEALTHCHECK ").split_once("CMD ").expect("a command").1;
    assert!(words(check)[2].contains(&format!("/dev/tcp/127.0.0.1/{};", args.http_addr.port())));
    let user: u32 = line("USER ").split(':').next().and_then(|user| user.parse().ok()).expect("a number");
    assert_ne!(user, 0);
    assert!(file.contains(concat!("org.opencontainers.image.version=\"", env!("CARGO_PKG_VERSION"), "\"")));
}

#[test]
fn ranks_of_an_mpi_job_serve_and_work() {
    let script = read(&folder().join("slurm/lingqu-mpi.sbatch"));
    let (_, ranks) = script.split_once("<<END\n").expect("a list of ranks");
    let (ranks, _) = ranks.split_once("\nEND\n").expect("its end");
    let values = [
        ("$((ranks - 1))", "4"),
        ("$serve_options", "--http-addr=0.0.0.0:8080 --grpc-addr=0.0.0.0:50051"),
        ("$options", "--backend=cpu"),
        ("$model", "/model"),
        ("$cluster", "mpi:"),
        ("$drain_s", "60"),
    ];
    let words = |line: &str| -> Vec<String> {
        let line = values.iter().fold(line.to_owned(), |line, (name, value)| line.replace(name, value));
        let mut words = line.split_whitespace().map(str::to_owned);
        assert!(words.next().is_some_and(|ranks| ranks == "0" || ranks == "1-4"), "{line}");
        assert_eq!(words.next().as_deref(), Some("$lingqu"));
        words.collect()
    };
    let ranks: Vec<Vec<String>> = ranks.lines().map(words).collect();
    let [first, others] = &ranks[..] else { panic!("{ranks:?}") };
    assert_eq!(serve(first).drain_timeout, 60);
    assert_eq!(worker(others).listen, None);
    for words in [first, others] {
        assert_eq!(option(words, "--cluster"), Some("mpi:"));
    }
}
