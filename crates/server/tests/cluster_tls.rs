//! A cluster whose processes encrypt what they say and show certificates: the same tokens, and nothing for strangers.

mod support;

use std::path::{Path, PathBuf};

use support::worker::{Worker, listed};
use support::{Run, lingqu};

/// A configuration in a folder of its own, beside links to the certificates: paths in it are relative to it.
fn write(name: &str, workers: &[String], tls: &str) -> String {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("cluster-tls");
    std::fs::create_dir_all(&folder).expect("a folder for tests");
    std::fs::write(folder.join("secret"), "an open secret of tests").expect("written");
    let certificates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fabric/tests/tls");
    let _ = std::os::unix::fs::symlink(certificates, folder.join("tls")); // may be there
    let mut text = String::from("secret_file = \"secret\"\n");
    text += &listed(workers);
    text += "[deadlines]\nstep_ms = 60000\nconnect_ms = 10000\nheartbeat_ms = 60000\n";
    let path = folder.join(format!("{name}.toml"));
    std::fs::write(&path, text + tls).expect("written");
    path.to_str().expect("a UTF-8 path").to_owned()
}

fn tls(ca: &str, certificate: &str) -> String {
    format!("[tls]\nca = \"tls/{ca}.pem\"\ncertificate = \"tls/{certificate}.pem\"\nkey = \"tls/{certificate}.key\"\n")
}

fn generate(more: &[&str]) -> Run {
    let prompt = ["generate", "--prompt", "秋天", "--max-tokens", "20", "--seed", "11", "--temperature", "1"];
    lingqu(&[&prompt[..], more].concat())
}

#[test]
fn certificates_of_the_cluster_and_none_other() {
    let alone = generate(&[]);
    assert_eq!(alone.code, 0, "{}", alone.stderr);
    let unknown = vec!["127.0.0.1:1".to_owned(); 2];
    let file = write("workers", &unknown, &tls("ca", "node"));
    let workers = [0, 1].map(|id| Worker::start(&file, id, "127.0.0.1:0", &[]));
    let addresses = workers.each_ref().map(|worker| worker.address.clone());

    let together = generate(&["--cluster", &write("same", &addresses, &tls("ca", "node"))]);
    assert_eq!((together.code, &together.stdout), (0, &alone.stdout), "{}", together.stderr);
    assert!(!together.stderr.contains("fenced"), "{}", together.stderr);

    // The secret alone is not enough.
    let check = |name: &str, tls: &str, says: &str| {
        let run = generate(&["--cluster", &write(name, &addresses, tls)]);
        assert!(run.code == 1 && run.stderr.contains(says), "{name}: {} {}", run.code, run.stderr);
    };
    check("stranger", &tls("ca", "stranger"), "the peer does not take our certificate: UnknownCA");
    check("other", &tls("other-ca", "node"), "the peer's certificate: ");
    check("missing", &tls("ca", "nobody"), "nobody.pem: cannot be read");
}
