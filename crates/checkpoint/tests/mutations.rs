//! Random damage to valid files: whatever it does, opening and reading neither panics nor takes much memory.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use lingqu_checkpoint::Checkpoint;
use proptest::collection::vec;
use proptest::prelude::*;
use support::{gguf, open_gguf, open_safetensors, safetensors};

/// Counts what the current thread holds, and the most that it held.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    let held = HELD.get() + bytes;
    HELD.set(held);
    MOST.set(MOST.get().max(held));
}

// SAFETY: every call goes to the system's allocator unchanged; counting touches only thread-local cells.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Reads all that a caller can ask for.
fn read_all(checkpoint: &Checkpoint) {
    for info in checkpoint.tensors() {
        let _ = checkpoint.tensor_slice(&info.name, 0);
        let Ok(Some(tensor)) = checkpoint.tensor(&info.name) else { continue };
        let _ = tensor.check_finite_scales();
        if tensor.cols <= 4096 {
            tensor.decode_row(tensor.rows - 1, &mut vec![0.0; tensor.cols]);
        }
    }
    if let Some(metadata) = checkpoint.gguf() {
        for (key, value) in metadata.iter() {
            let _ = (value.to_string(), metadata.u32(key), metadata.f32_array(key), metadata.str_array(key));
        }
    }
    checkpoint.fingerprint();
}

fn survives(file: Vec<u8>, open: impl Fn(Vec<u8>) -> Result<Checkpoint, lingqu_checkpoint::CheckpointError>) {
    let allowed = file.len() as isize * 16 + 65_536;
    let before = HELD.get();
    MOST.set(before);
    match open(file) {
        Ok(checkpoint) => read_all(&checkpoint),
        Err(error) => assert!(error.to_string().len() < 1000, "{error}"),
    }
    let taken = MOST.get() - before;
    assert!(taken <= allowed, "took {taken} bytes, allowed {allowed}");
}

/// One piece of damage, at a place in thousandths of the file.
#[derive(Clone, Debug)]
enum Damage {
    Byte(usize, u8),
    /// A length or count: what hostile files try.
    Number(usize, u64),
    Cut(usize),
    Remove(usize, usize),
    Repeat(usize, usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    let number = prop_oneof![
        Just(0),
        Just(1),
        Just(u64::MAX),
        Just(i64::MAX as u64),
        Just(1 << 32),
        Just(u64::MAX - 31),
        0u64..5000,
        any::<u64>(),
    ];
    let at = 0usize..1000;
    prop_oneof![
        4 => (at.clone(), any::<u8>()).prop_map(|(at, byte)| Damage::Byte(at, byte)),
        4 => (at.clone(), number).prop_map(|(at, number)| Damage::Number(at, number)),
        1 => at.clone().prop_map(Damage::Cut),
        1 => (at.clone(), 1usize..40).prop_map(|(at, bytes)| Damage::Remove(at, bytes)),
        1 => (at, 1usize..40).prop_map(|(at, bytes)| Damage::Repeat(at, bytes)),
    ]
}

/// Damage goes to the first `header` bytes, where it does most, and past them once in a while.
fn damaged(mut file: Vec<u8>, header: usize, all: &[Damage]) -> Vec<u8> {
    for damage in all {
        let place = |at: &usize| (at * header / 950).min(file.len().saturating_sub(1));
        match damage {
            _ if file.is_empty() => {}
            Damage::Byte(at, byte) => {
                let at = place(at);
                file[at] = *byte;
            }
            Damage::Number(at, number) => {
                let at = place(at);
                file.iter_mut().skip(at).zip(number.to_le_bytes()).for_each(|(old, new)| *old = new);
            }
            Damage::Cut(at) => file.truncate(place(at)),
            Damage::Remove(at, bytes) => {
                let at = place(at);
                file.drain(at..(at + bytes).min(file.len()));
            }
            Damage::Repeat(at, bytes) => {
                let at = place(at);
                let again = file[at..(at + bytes).min(file.len())].to_vec();
                file.splice(at..at, again);
            }
        }
    }
    file
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn gguf_files(all in vec(damage(), 1..5)) {
        let header = gguf().header().len();
        survives(damaged(gguf().finish(), header, &all), open_gguf);
    }

    #[test]
    fn safetensors_files(all in vec(damage(), 1..5)) {
        survives(damaged(safetensors().finish(), 420, &all), open_safetensors);
    }

    #[test]
    fn noise(mut noise in vec(any::<u8>(), 0..400), version in 2u32..4) {
        survives(noise.clone(), open_safetensors);
        noise.splice(0..noise.len().min(8), [b"GGUF".as_slice(), &version.to_le_bytes()].concat());
        survives(noise, open_gguf);
    }
}

#[test]
#[should_panic(expected = "took")]
fn too_much_memory_is_noticed() {
    survives(vec![0; 100], |file| {
        let much = vec![1u8; 1 << 20];
        open_gguf([file, much].concat())
    });
}
