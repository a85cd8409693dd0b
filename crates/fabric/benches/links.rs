//! What a message costs on a link of this machine: for `link_latency_us` and `link_gb_s` of `lingqu plan`, and for
//! comparing fabrics. Both ends are threads of this process, on loopback; a network adds its own.
//!
//! A question of `bytes` is answered by one as long, as often as fits into half a second; half of a round is one way.

use std::time::{Duration, Instant};

use lingqu_fabric::{FRAME_BYTES_MAX, Fabric, Link, Secret, Tag, TcpFabric};

const SECRET: &[u8] = b"a secret of benches, no secret";
/// A heartbeat; a row of DeepSeek-R1 in bf16 and in f32; rows of a prompt.
const SIZES: [usize; 5] = [64, 14 << 10, 28 << 10, 1 << 20, 16 << 20];
const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    let fabric = TcpFabric::new(Secret::new(SECRET).expect("long enough"));
    println!("{:>10} {:>12} {:>12} {:>12} {:>10}", "bytes", "p5 us", "median us", "p95 us", "GB/s");
    for bytes in SIZES {
        let mut rounds = rounds(&fabric, bytes);
        rounds.sort_by(f64::total_cmp);
        let one_way_us = |share: f64| rounds[((rounds.len() - 1) as f64 * share) as usize] / 2.0 * 1e6;
        let median = one_way_us(0.5);
        let gb_s = bytes as f64 / median / 1e3;
        println!("{bytes:>10} {:>12.1} {median:>12.1} {:>12.1} {gb_s:>10.3}", one_way_us(0.05), one_way_us(0.95));
    }
}

/// Seconds of each round.
fn rounds(fabric: &TcpFabric, bytes: usize) -> Vec<f64> {
    let listener = fabric.listen("127.0.0.1:0").expect("a free port");
    let address = listener.address();
    let echo = std::thread::spawn(move || {
        let caller = listener.accept().expect("a caller");
        let mut link = caller.admit(&mut |_| Ok(Vec::new()), Instant::now() + PATIENCE).expect("a link");
        let mut message = Vec::new();
        while let Ok((tag, bytes)) = link.receive(FRAME_BYTES_MAX, Instant::now() + PATIENCE) {
            message.clear();
            message.extend_from_slice(bytes);
            link.send(tag, &[&message], Instant::now() + PATIENCE).expect("sent");
        }
    });
    let mut link = fabric.connect(&address, b"", Instant::now() + PATIENCE).expect("a link").link;
    let message = vec![7; bytes];
    for _ in 0..3 {
        round(&mut *link, &message);
    }
    let (began, mut rounds) = (Instant::now(), Vec::new());
    while began.elapsed() < Duration::from_millis(500) || rounds.len() < 10 {
        rounds.push(round(&mut *link, &message));
    }
    drop(link);
    echo.join().expect("no panic");
    rounds
}

fn round(link: &mut dyn Link, message: &[u8]) -> f64 {
    let began = Instant::now();
    link.send(Tag { kind: 1, epoch: 1, sequence: 1 }, &[message], began + PATIENCE).expect("sent");
    let (_, answer) = link.receive(FRAME_BYTES_MAX, began + PATIENCE).expect("an answer");
    assert_eq!(answer.len(), message.len());
    began.elapsed().as_secs_f64()
}
