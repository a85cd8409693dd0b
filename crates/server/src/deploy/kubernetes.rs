//! `/deploy/kubernetes`: schemas, command lines, and what must agree.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use lingqu_cluster::ClusterConfig;
use serde_json::{Map, Value};

use super::schema::{Extent, Schemas};
use super::{folder, option, serve, worker, yaml};

/// Ways to run Lingqu, each a folder for `kubectl apply -k`.
const WAYS: [&str; 4] = ["overlays/cpu", "overlays/nvidia", "overlays/dcu", "leaderworkerset"];

fn kubernetes() -> PathBuf {
    folder().join("kubernetes")
}

fn yaml_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(yaml_files(&path));
        } else if path.extension().is_some_and(|e| e == "yaml") {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("no text at {pointer} of {value}"))
}

fn number(value: &Value, pointer: &str) -> u64 {
    value.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("no number at {pointer} of {value}"))
}

fn array<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn strings(value: &Value, pointer: &str) -> Vec<String> {
    array(value, pointer).iter().map(|item| item.as_str().expect("text").to_owned()).collect()
}

/// A template of pods, and what makes them.
struct Pods<'a> {
    owner: &'a Value,
    labels: &'a Map<String, Value>,
    spec: &'a Value,
    container: &'a Value,
    /// After `lingqu`, with variables as the first worker has them.
    words: Vec<String>,
}

impl<'a> Pods<'a> {
    fn new(owner: &'a Value, template: &'a Value) -> Self {
        let labels = template.pointer("/metadata/labels").and_then(Value::as_object).expect("pods have labels");
        let container = template.pointer("/spec/containers/0").expect("a container");
        let mut words = strings(container, "/args");
        for (name, value) in [("POD_INDEX", "0"), ("LWS_WORKER_INDEX", "1")] {
            let is_set = array(container, "/env").iter().any(|variable| variable["name"] == name);
            if is_set || (name.starts_with("LWS") && owner["kind"] == "LeaderWorkerSet") {
                words.iter_mut().for_each(|word| *word = word.replace(&format!("$({name})"), value));
            }
        }
        assert!(words.iter().all(|word| !word.contains("$(")), "a variable that nobody sets: {words:?}");
        Self { owner, labels, spec: &template["spec"], container, words }
    }

    fn are_selected_by(&self, selector: &Value) -> bool {
        let wanted = selector.as_object().expect("labels");
        wanted.iter().all(|(key, value)| self.labels.get(key) == Some(value))
    }

    fn port(&self, name: &str) -> u64 {
        let ports = array(self.container, "/ports");
        let port = ports.iter().find(|port| port["name"] == name).unwrap_or_else(|| panic!("no port {name}"));
        number(port, "/containerPort")
    }

    /// Where a volume is mounted, read-only.
    fn mount(&self, volume: &str) -> &str {
        let mount = array(self.container, "/volumeMounts").iter().find(|mount| mount["name"] == volume);
        let mount = mount.unwrap_or_else(|| panic!("{volume} is not mounted"));
        assert_eq!(mount["readOnly"], true, "{volume}");
        text(mount, "/mountPath")
    }
}

fn pods(objects: &[Value]) -> Vec<Pods<'_>> {
    let mut found = Vec::new();
    for object in objects {
        match object["kind"].as_str() {
            Some("Deployment" | "StatefulSet") => {
                let pods = Pods::new(object, &object["spec"]["template"]);
                assert!(pods.are_selected_by(&object["spec"]["selector"]["matchLabels"]), "{}", object["metadata"]);
                found.push(pods);
            }
            Some("LeaderWorkerSet") => {
                let templates = &object["spec"]["leaderWorkerTemplate"];
                found.push(Pods::new(object, &templates["leaderTemplate"]));
                found.push(Pods::new(object, &templates["workerTemplate"]));
            }
            _ => {}
        }
    }
    found
}

/// Everything that must agree among the objects of one way, and with its cluster.toml.
fn check(objects: &[Value], cluster_toml: &str) {
    assert!(objects.iter().all(|object| object["kind"] != "Secret"), "secrets are not for a repository");
    let pods = pods(objects);
    let [servers, workers] = &pods[..] else { panic!("{} templates of pods, not 2", pods.len()) };
    let config = cluster(cluster_toml);
    check_server(servers, &config);
    check_workers(workers, &config, objects);
    for pods in &pods {
        check_safety(pods);
        for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
            let probe = &pods.container[probe];
            pods.port(
                probe
                    .pointer("/httpGet/port")
                    .or(probe.pointer("/tcpSocket/port"))
                    .and_then(Value::as_str)
                    .expect("named"),
            );
        }
        let secret = Path::new(pods.mount("secret")).join("cluster.secret");
        assert_eq!(config.secret_file, secret);
    }
    let of_kind = |kind: &'static str| objects.iter().filter(move |object| object["kind"] == kind);
    for service in of_kind("Service") {
        let selected: Vec<_> = pods.iter().filter(|p| p.are_selected_by(&service["spec"]["selector"])).collect();
        assert_eq!(selected.len(), 1, "{}", service["metadata"]);
        for port in array(service, "/spec/ports") {
            assert_eq!(selected[0].port(text(port, "/targetPort")), number(port, "/port"));
        }
    }
    for pods in &pods {
        let budgets =
            of_kind("PodDisruptionBudget").filter(|b| pods.are_selected_by(&b["spec"]["selector"]["matchLabels"]));
        assert_eq!(budgets.map(|budget| number(budget, "/spec/maxUnavailable")).collect::<Vec<_>>(), [1]);
        let policies: Vec<_> = of_kind("NetworkPolicy")
            .filter(|policy| pods.are_selected_by(&policy["spec"]["podSelector"]["matchLabels"]))
            .collect();
        assert_eq!(policies.len(), 1, "{:?}", pods.labels);
        assert_eq!(strings(policies[0], "/spec/policyTypes"), ["Ingress", "Egress"]);
        for port in array(policies[0], "/spec/ingress").iter().flat_map(|rule| array(rule, "/ports")) {
            pods.port(text(port, "/port"));
        }
    }
    let to_workers =
        of_kind("NetworkPolicy").find(|p| servers.are_selected_by(&p["spec"]["podSelector"]["matchLabels"]));
    let to_workers = to_workers.and_then(|policy| policy.pointer("/spec/egress/0")).expect("servers call workers");
    assert!(workers.are_selected_by(&to_workers["to"][0]["podSelector"]["matchLabels"]));
    assert_eq!(number(to_workers, "/ports/0/port"), workers.port("experts"));
}

fn cluster(cluster_toml: &str) -> ClusterConfig {
    let test = std::thread::current().name().unwrap_or("test").replace(':', "-");
    let path = std::env::temp_dir().join(format!("lingqu-{test}-{}.toml", std::process::id()));
    std::fs::write(&path, cluster_toml).expect("written");
    let config = ClusterConfig::read(&path).expect("cluster.toml is sound");
    std::fs::remove_file(path).expect("removed");
    config
}

fn check_server(pods: &Pods<'_>, config: &ClusterConfig) {
    let args = serve(&pods.words);
    for (address, port) in [(args.grpc_addr, "grpc"), (args.http_addr, "http")] {
        assert!(address.ip().is_unspecified(), "others call this address: {address}");
        assert_eq!(u64::from(address.port()), pods.port(port));
    }
    let before = number(pods.container, "/lifecycle/preStop/sleep/seconds");
    let grace = number(pods.spec, "/terminationGracePeriodSeconds");
    assert!(
        before + args.drain_timeout < grace,
        "{before} s and {} s to drain, but {grace} s of grace",
        args.drain_timeout
    );
    check_files(pods);
    let probe = &pods.container["startupProbe"];
    let start_ms = 1000 * number(probe, "/periodSeconds") * number(probe, "/failureThreshold");
    assert!(config.deadlines.start_ms < start_ms, "Kubernetes gives up before the server does");
}

fn check_workers(pods: &Pods<'_>, config: &ClusterConfig, objects: &[Value]) {
    let args = worker(&pods.words);
    let listen = args.listen.expect("it listens for others");
    assert_eq!(listen, format!("0.0.0.0:{}", pods.port("experts")));
    let health = args.http_addr.expect("its probes ask there");
    assert!(health.ip().is_unspecified() && u64::from(health.port()) == pods.port("health"), "{health}");
    for (probe, path) in [("startupProbe", "/health"), ("readinessProbe", "/ready"), ("livenessProbe", "/health")] {
        assert_eq!(text(&pods.container[probe], "/httpGet/path"), path, "{probe}");
    }
    check_files(pods);
    let (owner, name) = (pods.owner, text(pods.owner, "/metadata/name"));
    let expected: Vec<(u32, String)> = if owner["kind"] == "StatefulSet" {
        let service = text(owner, "/spec/serviceName");
        let headless = objects.iter().find(|o| o["kind"] == "Service" && o["metadata"]["name"] == service);
        assert_eq!(headless.expect("the StatefulSet's Service")["spec"]["clusterIP"], "None");
        (0..number(owner, "/spec/replicas") as u32).map(|id| (id, format!("{name}-{id}.{service}"))).collect()
    } else {
        let size = number(owner, "/spec/leaderWorkerTemplate/size") as u32;
        assert_eq!(number(owner, "/spec/replicas"), 1, "the names in cluster.toml are those of one group");
        assert_eq!(text(owner, "/spec/leaderWorkerTemplate/restartPolicy"), "None");
        (1..size).map(|id| (id, format!("{name}-0-{id}.{name}"))).collect()
    };
    assert_eq!(option(&pods.words, "--id"), Some(&*expected[0].0.to_string()));
    let listed = config.workers.iter().map(|worker| (worker.id, worker.address.clone()));
    let port = pods.port("experts");
    assert!(listed.eq(expected.into_iter().map(|(id, host)| (id, format!("{host}:{port}")))), "{:?}", config.workers);
}

/// What it opens is mounted.
fn check_files(pods: &Pods<'_>) {
    assert_eq!(option(&pods.words, "--model"), Some(pods.mount("model")));
    assert_eq!(option(&pods.words, "--cluster"), Some(&*format!("{}/cluster.toml", pods.mount("cluster"))));
}

fn check_safety(pods: &Pods<'_>) {
    assert_eq!(pods.spec["automountServiceAccountToken"], false);
    assert_eq!(pods.spec["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pods.spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    let own = &pods.container["securityContext"];
    assert_eq!(own["allowPrivilegeEscalation"], false);
    assert_eq!(own["readOnlyRootFilesystem"], true);
    assert_eq!(strings(own, "/capabilities/drop"), ["ALL"]);
}

/// Objects of files, in the order in which the checks expect them: those of servers first.
fn objects_of(folders: &[&str]) -> Vec<Value> {
    let files = folders.iter().flat_map(|folder| yaml_files(&kubernetes().join(folder)));
    files.flat_map(|file| yaml::read(&file)).filter(|object| object["kind"] != "Kustomization").collect()
}

#[test]
fn objects_are_sound() {
    let schemas = Schemas::read();
    let mut kinds = BTreeSet::new();
    for file in yaml_files(&kubernetes()) {
        let name = file.file_name().and_then(|name| name.to_str()).expect("a UTF-8 name");
        if matches!(name, "kustomization.yaml" | "name-references.yaml") {
            continue;
        }
        let extent = if name == "accelerator.yaml" { Extent::Part } else { Extent::Whole };
        for object in yaml::read(&file) {
            assert_eq!(schemas.problems(&object, extent), [""; 0], "{}", file.display());
            kinds.insert(text(&object, "/kind").to_owned());
        }
    }
    let expected = ["Deployment", "LeaderWorkerSet", "Namespace", "NetworkPolicy", "PodDisruptionBudget", "Service"];
    assert!(kinds.iter().map(String::as_str).eq(expected.into_iter().chain(["StatefulSet"])), "{kinds:?}");
}

#[test]
fn objects_agree() {
    for (folders, config) in [(vec!["base", "common"], "base"), (vec!["leaderworkerset", "common"], "leaderworkerset")]
    {
        let objects = objects_of(&folders);
        let objects: Vec<_> = objects.into_iter().filter(|object| object["kind"].is_string()).collect();
        check(&objects, &super::read(&kubernetes().join(config).join("cluster.toml")));
    }
}

/// What kustomizations name is there, and what they add to command lines is taken.
#[test]
fn kustomizations_name_what_is_there() {
    for folder in WAYS.iter().chain(&["base", "common"]).map(|way| kubernetes().join(way)) {
        let kustomization = &yaml::read(&folder.join("kustomization.yaml"))[0];
        let patches = array(kustomization, "/patches");
        let files = patches.iter().filter_map(|patch| patch["path"].as_str().map(str::to_owned));
        let generated = array(kustomization, "/configMapGenerator").iter().flat_map(|map| strings(map, "/files"));
        let named = [strings(kustomization, "/resources"), strings(kustomization, "/configurations")].concat();
        for path in named.into_iter().chain(files).chain(generated) {
            assert!(folder.join(&path).exists(), "{}: {path}", folder.display());
        }
        for patch in patches.iter().filter_map(|patch| patch["patch"].as_str()) {
            for step in array(&yaml::parse(patch, "a patch")[0], "") {
                if text(step, "/path").ends_with("/args/-") {
                    let added = text(step, "/value").to_owned();
                    serve(&["serve".into(), added.clone()]);
                    worker(&["worker".into(), "--id=0".into(), added]);
                }
            }
        }
    }
}

/// The same checks on what kustomize makes of it, where kubectl is there to make it.
#[test]
fn rendered_objects_agree() {
    if Command::new("kubectl").args(["version", "--client"]).output().is_err() {
        eprintln!("skipped: no kubectl to render kustomizations with");
        return;
    }
    let schemas = Schemas::read();
    for way in WAYS {
        let output =
            Command::new("kubectl").arg("kustomize").arg(kubernetes().join(way)).output().expect("kubectl runs");
        assert!(output.status.success(), "{way}: {}", String::from_utf8_lossy(&output.stderr));
        let objects = yaml::parse(std::str::from_utf8(&output.stdout).expect("UTF-8"), way);
        for object in &objects {
            assert_eq!(schemas.problems(object, Extent::Whole), [""; 0], "{way}");
        }
        let maps: Vec<_> = objects.iter().filter(|object| object["kind"] == "ConfigMap").collect();
        let [map] = maps[..] else { panic!("{way}: {} ConfigMaps", maps.len()) };
        check(&objects, text(map, "/data/cluster.toml"));
        for pods in pods(&objects) {
            let volume = array(pods.spec, "/volumes").iter().find(|volume| volume["name"] == "cluster").expect("there");
            assert_eq!(volume["configMap"]["name"], map["metadata"]["name"], "{way}");
            assert!(text(pods.container, "/image").contains(":0.1.0"), "{way}");
            assert!(pods.words.iter().any(|word| word.starts_with("--backend=")) || way == "leaderworkerset", "{way}");
        }
    }
}
