//! Memory, and what must be refused.

use lingqu_tensor::{Format, HostTensor};

use super::place::Place;
use super::random::Random;
use super::report::{Outcome, Subject};
use super::{Problem, Suite, compare, tolerance};
use crate::{Backend, BackendError, FfnSource, KvEntry, KvPrecision, KvSpec, LinearSource};

pub fn check(suite: &mut Suite<'_>) {
    let subject = Subject { op: "alloc", format: None };
    let zeroed = is_zeroed(suite.subject).unwrap_or_else(|Problem(problem)| Outcome::failed(problem));
    suite.report.note(subject, "values", zeroed);
    let subject = Subject { op: "write and read", format: None };
    for _ in 0..4 {
        let outcome = reads_what_was_written(suite.subject, &mut suite.random);
        suite.report.note(subject, "values", outcome.unwrap_or_else(|Problem(problem)| Outcome::failed(problem)));
    }
    let subject = Subject { op: "alloc_kv", format: None };
    for blocks in [1 << 45, usize::MAX / 64] {
        let entry = KvEntry::Latent { width: 576, v_dim: 512 };
        let held = suite.subject.alloc_kv(&KvSpec {
            layers: 61,
            blocks,
            block_tokens: 64,
            entry,
            precision: KvPrecision::Full,
        });
        let refused = matches!(held, Err(BackendError::OutOfMemory { .. }));
        suite.report.note(subject, "refusal", Outcome::expect(refused, "a cache beyond all memory is OutOfMemory"));
    }
    for format in Format::ALL {
        if !suite.subject.capabilities().weight_formats.contains(&format) {
            refuses_format(suite, format);
        }
    }
}

fn is_zeroed(backend: &dyn Backend) -> Result<Outcome, Problem> {
    let mut buffer = backend.alloc(5, 33)?;
    buffer.set_rows(5);
    let mut values = vec![1.0; 5 * 33];
    backend.read(buffer.view(), &mut values)?;
    Ok(Outcome::expect(values.iter().all(|v| *v == 0.0), "a new buffer is zero"))
}

fn reads_what_was_written(backend: &dyn Backend, random: &mut Random) -> Result<Outcome, Problem> {
    let (heads, len) = (random.within(1, 4), random.within(1, 40));
    let place = Place::heads(random, heads, len);
    let rows = random.within(1, 9);
    let values = random.values(rows * place.width());
    let mut buffer = place.output(backend, rows)?;
    backend.write(&values, place.view_mut(&mut buffer))?;
    let magnitudes: Vec<f64> = values.iter().map(|v| f64::from(v.abs())).collect();
    Ok(compare(&place.result(backend, &buffer)?, &values, &magnitudes, tolerance::HALF))
}

fn refuses_format(suite: &mut Suite<'_>, format: Format) {
    let w = HostTensor::encode("w", [256, 256], format, &vec![0.5; 256 * 256]).expect("whole blocks");
    let w = || w.clone();
    let (backend, ffn) = (suite.subject, FfnSource { gate: w(), up: w(), down: w() });
    let uploads = [
        ("embedding", backend.upload_embedding(&w()).err()),
        ("linear layer", backend.upload_linear(LinearSource::one(&w())).err()),
        ("heads", backend.upload_heads(&[w()]).err()),
        ("feed-forward layer", backend.upload_ffn(&ffn).err()),
        ("experts", backend.upload_experts(std::slice::from_ref(&ffn)).err()),
    ];
    let subject = Subject { op: "upload", format: Some(format) };
    for (what, error) in uploads {
        let refused = matches!(error, Some(BackendError::Unsupported { .. }));
        let outcome = Outcome::expect(refused, "a format that is not listed is Unsupported");
        suite.report.note(subject, "refusal", outcome.told(|| what.into()));
    }
}
