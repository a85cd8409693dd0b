//! What a call's headers say of its service.

use std::time::{Duration, Instant};

use lingqu_types::Priority;
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::status::invalid;

const TIMEOUT: &str = "grpc-timeout";
const OPENENGINE_PRIORITY: &str = "openengine-priority";
const OPENENGINE_RANK: &str = "openengine-target-dp-rank";
/// Digits that gRPC allows in a timeout.
const TIMEOUT_DIGITS_MAX: usize = 8;

/// When the call must have ended, as its client's gRPC library says.
pub fn deadline(metadata: &MetadataMap) -> Result<Option<Instant>, Status> {
    let Some(value) = metadata.get(TIMEOUT) else { return Ok(None) };
    let timeout = value.to_str().ok().and_then(timeout);
    let timeout = timeout.ok_or_else(|| invalid(TIMEOUT, "is not up to 8 digits and one of H, M, S, m, u, n"))?;
    Ok(Instant::now().checked_add(timeout))
}

fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > TIMEOUT_DIGITS_MAX || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

/// OpenEngine's routing headers. Of its priorities, where higher is more urgent and 0 stands for none, those below 0
/// are batch work.
pub fn openengine_priority(metadata: &MetadataMap) -> Result<Priority, Status> {
    if number::<u32>(metadata, OPENENGINE_RANK)?.is_some_and(|rank| rank != 0) {
        return Err(invalid(OPENENGINE_RANK, "this engine has rank 0 alone"));
    }
    match number::<i32>(metadata, OPENENGINE_PRIORITY)? {
        Some(priority) if priority < 0 => Ok(Priority::Batch),
        _ => Ok(Priority::Interactive),
    }
}

/// A header's number; it may be given once.
fn number<T: std::str::FromStr>(metadata: &MetadataMap, key: &'static str) -> Result<Option<T>, Status> {
    let mut values = metadata.get_all(key).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(invalid(key, "is given twice"));
    }
    let number = value.to_str().ok().and_then(|text| text.parse().ok());
    number.map(Some).ok_or_else(|| invalid(key, "is not a number of 32 bits"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read() {
        let check = |text: &str, expected: Option<Duration>| assert_eq!(timeout(text), expected, "{text}");
        check("1S", Some(Duration::from_secs(1)));
        check("99999999H", Some(Duration::from_secs(99_999_999 * 3600)));
        check("2M", Some(Duration::from_secs(120)));
        check("250m", Some(Duration::from_millis(250)));
        check("7u", Some(Duration::from_micros(7)));
        check("0n", Some(Duration::ZERO));
        for wrong in ["", "S", "1", "1s", "-1S", "+1S", "1.5S", "100000000S", "1秒"] {
            check(wrong, None);
        }
    }

    #[test]
    fn openengine_headers_are_checked() {
        let check = |headers: &[(&'static str, &'static str)], expected: Result<Priority, &str>| {
            let mut metadata = MetadataMap::new();
            for (key, value) in headers {
                metadata.append(*key, value.parse().expect("ascii"));
            }
            let got = openengine_priority(&metadata);
            match expected {
                Ok(priority) => assert_eq!(got.expect("valid"), priority),
                Err(field) => assert!(got.expect_err(field).message().starts_with(&format!("{field}: "))),
            }
        };
        check(&[], Ok(Priority::Interactive));
        check(&[(OPENENGINE_PRIORITY, "7")], Ok(Priority::Interactive));
        check(&[(OPENENGINE_PRIORITY, "-1"), (OPENENGINE_RANK, "0")], Ok(Priority::Batch));
        check(&[(OPENENGINE_PRIORITY, "high")], Err(OPENENGINE_PRIORITY));
        check(&[(OPENENGINE_PRIORITY, "1"), (OPENENGINE_PRIORITY, "1")], Err(OPENENGINE_PRIORITY));
        check(&[(OPENENGINE_PRIORITY, "4294967296")], Err(OPENENGINE_PRIORITY));
        check(&[(OPENENGINE_RANK, "1")], Err(OPENENGINE_RANK));
    }
}
