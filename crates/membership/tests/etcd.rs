//! The registry against a real etcd; skipped where there is none.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use lingqu_membership::{
    Address, Client, EtcdError, Event, Member, Put, RegisterError, Registered, Registration, Registry,
};
use lingqu_testkit::etcd::Etcd;
use tokio::sync::watch;
use tokio::time::timeout;

/// Nothing that works takes this long.
const PATIENCE: Duration = Duration::from_secs(60);
/// etcd's least.
const SHORT: Duration = Duration::from_secs(2);
/// Kept alive often enough, also on a busy machine.
const KEPT: Duration = Duration::from_secs(6);
/// Does not end in a test, however busy the machine.
const LONG: Duration = Duration::from_secs(600);

fn start(name: &str) -> Option<Etcd> {
    Etcd::start(&PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name))
}

fn address(etcd: &Etcd) -> Address {
    format!("etcd://{}/test", etcd.endpoint()).parse().expect("sound")
}

fn registry(etcd: &Etcd) -> Registry {
    Registry::new(&address(etcd), None).expect("sound")
}

fn registration(port: u16) -> Registration {
    Registration { address: format!("127.0.0.1:{port}"), memory_gib: Some(1.5), speed: 1.0 }
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(PATIENCE, what).await.expect("it takes too long")
}

async fn register(registry: &Registry, id: u32, ttl: Duration) -> Registered {
    soon(registry.register(id, &registration(7000), ttl, PATIENCE)).await.expect("nobody else is there")
}

/// What a server hears, in a task of its own.
struct Server(watch::Receiver<Vec<Member>>);

impl Server {
    fn start(etcd: &Etcd, grace: Duration) -> Self {
        let (registry, (send, receive)) = (registry(etcd), watch::channel(Vec::new()));
        tokio::spawn(async move { registry.follow(grace, |members| drop(send.send(members))).await });
        Self(receive)
    }

    /// Waits until these workers are there, by id and incarnation.
    async fn sees(&mut self, expected: &[(u32, u64)]) {
        let of = |members: &Vec<Member>| -> Vec<(u32, u64)> { members.iter().map(|m| (m.id, m.incarnation)).collect() };
        let seen = timeout(PATIENCE, self.0.wait_for(|members| of(members) == expected)).await.map(|_| ());
        assert!(seen.is_ok(), "{:?} are there, not {expected:?}", of(&self.0.borrow()));
    }
}

fn is(registered: &Registered) -> (u32, u64) {
    (registered.id, registered.incarnation)
}

#[tokio::test]
async fn workers_come_and_go() {
    let Some(etcd) = start("come-and-go") else { return };
    let (registry, mut server) = (registry(&etcd), Server::start(&etcd, LONG));
    let first = register(&registry, 0, SHORT).await;
    server.sees(&[is(&first)]).await;
    let second = register(&registry, 1, LONG).await;
    server.sees(&[is(&first), is(&second)]).await;
    assert!(second.incarnation > first.incarnation);
    // Nobody keeps the first one's lease; the second one ends its own.
    server.sees(&[is(&second)]).await;
    soon(registry.keep(&first)).await;
    soon(registry.resign(&second)).await.expect("etcd is there");
    server.sees(&[]).await;
    let again = register(&registry, 0, LONG).await;
    assert!(again.incarnation > second.incarnation);
    server.sees(&[is(&again)]).await;
    let member = soon(registry.workers()).await.expect("etcd is there").0.remove(0);
    assert_eq!((member.registration, member.id), (registration(7000), 0));
    // Somebody deletes what he should not: who is registered so learns it.
    etcd.post("/v3/kv/deleterange", r#"{"key": "L2xpbmdxdS90ZXN0L3dvcmtlcnMvMA=="}"#);
    server.sees(&[]).await;
    let short = register(&registry, 3, SHORT).await;
    etcd.post("/v3/kv/deleterange", r#"{"key": "L2xpbmdxdS90ZXN0L3dvcmtlcnMvMw=="}"#);
    soon(registry.keep(&short)).await;
}

#[tokio::test]
async fn a_lease_that_is_kept_does_not_end() {
    let Some(etcd) = start("kept") else { return };
    let registry = registry(&etcd);
    let kept = register(&registry, 0, KEPT).await;
    // Thrice its time: it would have ended if it were not kept.
    assert!(timeout(3 * KEPT, registry.keep(&kept)).await.is_err(), "it was lost");
    let (members, _) = soon(registry.workers()).await.expect("etcd is there");
    assert_eq!(members.iter().map(|m| m.incarnation).collect::<Vec<_>>(), [kept.incarnation]);
}

#[tokio::test]
async fn two_with_one_id() {
    let Some(etcd) = start("one-id") else { return };
    let registry = registry(&etcd);
    let living = register(&registry, 0, LONG).await;
    let second = soon(registry.register(0, &registration(7001), SHORT, PATIENCE)).await;
    let Err(RegisterError::Taken { id: 0, address, .. }) = second else { panic!("{second:?}") };
    assert_eq!(address, "127.0.0.1:7000");
    soon(registry.resign(&living)).await.expect("etcd is there");
    // Of one that does not live any more the lease is waited for.
    let dead = register(&registry, 0, SHORT).await;
    let next = soon(registry.register(0, &registration(7001), SHORT, PATIENCE)).await.expect("the lease ends");
    assert!(next.incarnation > dead.incarnation);
}

#[tokio::test]
async fn etcd_restarts() {
    let Some(mut etcd) = start("restarts") else { return };
    let (registry, mut server) = (registry(&etcd), Server::start(&etcd, LONG));
    let kept = register(&registry, 0, LONG).await;
    server.sees(&[is(&kept)]).await;
    etcd.kill();
    let away = soon(registry.config()).await;
    assert!(matches!(away, Err(EtcdError::Away { .. })), "{away:?}");
    let unable = soon(registry.register(1, &registration(7000), LONG, Duration::ZERO)).await;
    assert!(matches!(unable, Err(RegisterError::Etcd(EtcdError::Away { .. }))), "{unable:?}");
    server.sees(&[is(&kept)]).await;
    etcd.restart();
    let second = register(&registry, 1, LONG).await;
    server.sees(&[is(&kept), is(&second)]).await;
}

#[tokio::test]
async fn etcd_loses_its_data() {
    let Some(mut etcd) = start("loses") else { return };
    let (registry, mut server) = (registry(&etcd), Server::start(&etcd, LONG));
    let second = register(&registry, 1, KEPT).await;
    // Revisions that the store will not reach again: a watch that went on from there would hear nothing.
    (0..50).for_each(|_| drop(etcd.post("/v3/kv/put", r#"{"key": "eA==", "value": "eA=="}"#)));
    let third = register(&registry, 2, LONG).await;
    server.0.wait_for(|members| members.iter().any(|m| m.id == 2)).await.expect("it follows");
    etcd.lose_data();
    etcd.restart();
    // The worker is told so, and registers again; those who do not are waited for.
    soon(registry.keep(&second)).await;
    let again = register(&registry, 1, LONG).await;
    assert!(again.incarnation < third.incarnation);
    let there = |members: &Vec<Member>| members.iter().any(|m| is(&again) == (m.id, m.incarnation));
    timeout(PATIENCE, server.0.wait_for(there)).await.expect("in time").expect("it follows");
    assert!(server.0.borrow().iter().any(|m| is(&third) == (m.id, m.incarnation)), "it has its time");

    let mut server = Server::start(&etcd, SHORT);
    server.sees(&[is(&again)]).await;
    etcd.lose_data();
    etcd.restart();
    server.sees(&[]).await; // nobody registers in time
}

#[tokio::test]
async fn watches_begin_where_they_should() {
    let Some(etcd) = start("watches") else { return };
    let client = Client::new(&address(&etcd), None).expect("sound");
    let Ok(Put::Created { revision: first }) = soon(client.create("a", "1", 0)).await else { panic!("it is new") };
    let Ok(Put::Created { revision: second }) = soon(client.create("b", "2", 0)).await else { panic!("it is new") };
    let Ok(Put::Taken(kv)) = soon(client.create("a", "3", 0)).await else { panic!("it is there") };
    assert_eq!((kv.value.as_slice(), kv.create_revision), (&b"1"[..], first));
    let key = |event: &Event| match event {
        Event::Put(kv) => kv.key.clone(),
        Event::Deleted { key } => key.clone(),
    };
    for (from, expected) in [(first, &[b"a", b"b"][..]), (first + 1, &[b"b"])] {
        let mut watch = soon(client.watch("a", "z", from)).await.expect("it begins");
        let mut keys = Vec::new();
        while keys.len() < expected.len() {
            keys.extend(soon(watch.next()).await.expect("it goes on").iter().map(key));
        }
        assert_eq!(keys, expected);
    }
    let mut later = soon(client.watch("a", "z", second + 1)).await.expect("it begins");
    etcd.post("/v3/kv/deleterange", r#"{"key": "YQ=="}"#);
    assert_eq!(soon(later.next()).await.expect("it goes on"), [Event::Deleted { key: b"a".to_vec() }]);
    // What was compacted cannot be watched; what comes after it can.
    etcd.post("/v3/kv/compaction", &format!("{{\"revision\": \"{}\"}}", second + 1));
    let mut compacted = soon(client.watch("a", "z", first)).await;
    if let Ok(watch) = &mut compacted {
        compacted = soon(watch.next()).await.map(|events| panic!("{events:?}"));
    }
    let Err(EtcdError::WatchEnded { reason, .. }) = compacted else { panic!("it cannot go on") };
    assert!(reason.contains("compacted"), "{reason}");
    assert!(soon(client.range("a", "z", 1)).await.is_ok_and(|reading| reading.kvs.len() == 1 && !reading.more));
}

#[tokio::test]
async fn settings_are_put_once() {
    let Some(etcd) = start("settings") else { return };
    let registry = registry(&etcd);
    assert_eq!(soon(registry.config()).await.expect("etcd is there"), None);
    assert_eq!(soon(registry.put_config("wire = 1")).await.expect("etcd is there"), "wire = 1");
    assert_eq!(soon(registry.put_config("wire = 2")).await.expect("etcd is there"), "wire = 1");
    assert_eq!(soon(registry.config()).await.expect("etcd is there").as_deref(), Some("wire = 1"));
    let long = soon(registry.put_config(&"x".repeat(100_000))).await;
    assert!(matches!(&long, Err(EtcdError::Value { key, .. }) if key == "/lingqu/test/config"), "{long:?}");
}

#[tokio::test]
async fn another_endpoint_is_asked_where_one_does_not_answer() {
    let Some(etcd) = start("endpoints") else { return };
    // One that hangs up, one that takes calls and says nothing, one that answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let silent = silent.local_addr().map(|address| (address, silent)).expect("it listens");
    let address = format!("etcd://127.0.0.1:1,{},{}/test", silent.0, etcd.endpoint());
    let registry = Registry::new(&address.parse().expect("sound"), None).expect("sound");
    assert_eq!(soon(registry.config()).await.expect("the third answers"), None);
    // It is remembered.
    assert_eq!(soon(registry.put_config("x")).await.expect("the third answers"), "x");
    let nobody =
        Registry::new(&format!("etcd://127.0.0.1:1,{}/test", silent.0).parse().expect("sound"), None).expect("sound");
    let away = soon(nobody.config()).await;
    assert!(matches!(&away, Err(EtcdError::Away { endpoint, .. }) if *endpoint == silent.0.to_string()), "{away:?}");
}
