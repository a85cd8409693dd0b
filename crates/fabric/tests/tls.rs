//! The same under TLS, and who is trusted.

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use lingqu_fabric::{CertificateFiles, Certificates, Fabric, FabricError, TcpFabric};
use support::{Echo, SECRET, SHORT, conforms, fabric, files, harm_is_seen, soon};

fn with(files: CertificateFiles) -> TcpFabric {
    fabric(SECRET).with_certificates(Certificates::read(&files).expect("sound files"))
}

fn ours() -> TcpFabric {
    with(files("ca", "node"))
}

#[test]
fn it_conforms() {
    let certificates = Certificates::read(&files("ca", "node")).expect("sound files");
    conforms(ours(), fabric("another secret of tests").with_certificates(certificates));
}

/// Both must be of the same authority, within their time, and the callee's of the name that it is called by.
#[test]
fn who_is_not_of_the_cluster_gets_nothing() {
    let check = |caller: TcpFabric, callee: TcpFabric, [to_caller, to_callee]: [&str; 2]| {
        let echo = Echo::start(&callee);
        let error = caller.connect(&echo.address, b"", soon()).err().expect(to_caller);
        assert!(matches!(error, FabricError::Untrusted(_)), "{error}");
        assert!(error.to_string().contains(to_caller), "{error}");
        let error = echo.end();
        assert!(matches!(error, FabricError::Untrusted(_) | FabricError::Closed), "{error}");
        assert!(error.to_string().contains(to_callee), "{error}");
    };
    let of = |ca, certificate| with(files(ca, certificate));
    check(of("ca", "stranger"), ours(), ["UnknownCA", "UnknownIssuer"]);
    check(ours(), of("ca", "stranger"), ["UnknownIssuer", "UnknownCA"]);
    check(ours(), of("other-ca", "node"), ["UnknownCA", "UnknownIssuer"]);
    check(of("ca", "expired"), ours(), ["CertificateExpired", "certificate"]);
    check(ours(), of("ca", "expired"), ["expired", "CertificateExpired"]);
    check(ours(), of("ca", "elsewhere"), ["not valid for name", "certificate"]);
    // A callee may have any certificate of the authority that bears the one name, wherever it is.
    let named = |name: &str| with(CertificateFiles { name: Some(name.into()), ..files("ca", "node") });
    let echo = Echo::start(&of("ca", "elsewhere"));
    named("elsewhere.test").connect(&echo.address, b"", soon()).expect("its name");
    let echo = Echo::start(&of("ca", "node"));
    assert!(named("elsewhere.test").connect(&echo.address, b"", soon()).is_err());
    drop(echo);
}

#[test]
fn plain_and_encrypted_do_not_meet() {
    let echo = Echo::start(&ours());
    let error = fabric(SECRET).connect(&echo.address, b"", soon()).err().expect("no TLS");
    assert!(matches!(error, FabricError::Corrupt(_) | FabricError::Unauthenticated), "{error}");
    assert!(matches!(echo.end(), FabricError::Tls(_)));

    let echo = Echo::start(&fabric(SECRET));
    let error = ours().connect(&echo.address, b"", soon()).err().expect("no TLS");
    assert!(matches!(error, FabricError::Closed), "{error}");
    assert!(matches!(echo.end(), FabricError::Corrupt(_)));

    // Whoever speaks something else gets at most an alert, which says nothing of us.
    let echo = Echo::start(&ours());
    let mut stream = TcpStream::connect(&echo.address).expect("it listens");
    stream.write_all(b"GET / HTTP/1.1\r\nhost: somewhere.example\r\n\r\n").expect("sent");
    assert!(matches!(echo.end(), FabricError::Tls(_)));
    let mut told = Vec::new();
    let _ = stream.read_to_end(&mut told);
    assert!(told.is_empty() || (told.len() == 7 && told[0] == 21), "{told:?}");

    // Who says nothing holds nobody up.
    let listener = ours().listen("127.0.0.1:0").expect("a free port");
    let silent = TcpStream::connect(listener.address()).expect("it listens");
    let caller = listener.accept().expect("a caller");
    let error = caller.admit(&mut |_| Ok(Vec::new()), Instant::now() + SHORT).err().expect("it says nothing");
    assert!(matches!(error, FabricError::TimedOut), "{error}");
    drop(silent);
}

#[test]
fn harm_is_seen_wherever_it_comes() {
    // A flipped length makes TLS wait for what the other side does not send; what it does not look at does no harm.
    harm_is_seen(&ours(), 600, (SHORT, |_| true));
}

#[test]
fn files_are_checked() {
    let check = |files: CertificateFiles, says: [&str; 2]| {
        let error = Certificates::read(&files).expect_err(says[1]).to_string();
        assert!(says.iter().all(|text| error.contains(text)), "{error}");
    };
    let missing = || "nowhere/at/all".into();
    check(CertificateFiles { ca: missing(), ..files("ca", "node") }, ["nowhere/at/all", "cannot be read"]);
    check(CertificateFiles { key: missing(), ..files("ca", "node") }, ["nowhere/at/all", "cannot be read"]);
    let key = files("ca", "node").key;
    check(CertificateFiles { certificate: key, ..files("ca", "node") }, ["node.key", "holds none"]);
    let key = files("ca", "stranger").key;
    check(CertificateFiles { key, ..files("ca", "node") }, ["node.pem", "KeyMismatch"]);
    let name = Some("no name".to_owned());
    check(CertificateFiles { name, ..files("ca", "node") }, ["no name", "invalid"]);
}
