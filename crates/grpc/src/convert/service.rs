//! What a call's headers say of its service.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lingqu_types::{Priority, Service};
use tonic::Status;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};

use crate::status::invalid;

const TIMEOUT: &str = "grpc-timeout";
const TENANT: &str = "x-lingqu-tenant";
const PRIORITY: &str = "x-lingqu-priority";
const OPENENGINE_PRIORITY: &str = "openengine-priority";
const OPENENGINE_RANK: &str = "openengine-target-dp-rank";
/// Digits that gRPC allows in a timeout.
const TIMEOUT_DIGITS_MAX: usize = 8;

/// What a call's headers say, whatever the protocol; what they leave open the request may say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FromHeaders {
    pub tenant: Option<Arc<str>>,
    pub priority: Option<Priority>,
    /// The call's own.
    pub deadline: Option<Instant>,
}

impl FromHeaders {
    pub fn read(metadata: &MetadataMap) -> Result<Self, Status> {
        let text = |key: &'static str| match once(metadata, key)?.map(|value| value.to_str()) {
            None => Ok(None),
            Some(Ok(text)) => Ok(Some(text)),
            Some(Err(_)) => Err(invalid(key, "must be ASCII")),
        };
        let priority = match text(PRIORITY)? {
            None => None,
            Some("interactive") => Some(Priority::Interactive),
            Some("batch") => Some(Priority::Batch),
            Some(_) => return Err(invalid(PRIORITY, "not one of interactive, batch")),
        };
        Ok(Self { tenant: text(TENANT)?.map(Arc::from), priority, deadline: deadline(metadata)? })
    }

    /// The service of a request that says `said`: headers, which a gateway may set, come before it; of two deadlines
    /// the earlier holds.
    pub fn over(&self, said: Service) -> Service {
        Service {
            priority: self.priority.unwrap_or(said.priority),
            tenant: self.tenant.clone().unwrap_or(said.tenant),
            deadline: self.deadline.into_iter().chain(said.deadline).min(),
        }
    }
}

/// When the call must have ended, as its client's gRPC library says.
fn deadline(metadata: &MetadataMap) -> Result<Option<Instant>, Status> {
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

/// A header's number.
fn number<T: std::str::FromStr>(metadata: &MetadataMap, key: &'static str) -> Result<Option<T>, Status> {
    let Some(value) = once(metadata, key)? else { return Ok(None) };
    let number = value.to_str().ok().and_then(|text| text.parse().ok());
    number.map(Some).ok_or_else(|| invalid(key, "is not a number of 32 bits"))
}

/// A header that may be given once.
fn once<'a>(metadata: &'a MetadataMap, key: &'static str) -> Result<Option<&'a AsciiMetadataValue>, Status> {
    let mut values = metadata.get_all(key).iter();
    match (values.next(), values.next()) {
        (_, Some(_)) => Err(invalid(key, "is given twice")),
        (value, None) => Ok(value),
    }
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

    fn metadata(headers: &[(&'static str, &str)]) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        for (key, value) in headers {
            metadata.append(*key, AsciiMetadataValue::try_from(value.as_bytes()).expect("a header"));
        }
        metadata
    }

    #[test]
    fn headers_come_before_the_request() {
        let now = Instant::now();
        let said = Service { priority: Priority::Batch, tenant: "tax".into(), deadline: Some(now) };
        let check = |headers: &[(&'static str, &str)], priority: Priority, tenant: &str| {
            let expected = Service { priority, tenant: tenant.into(), deadline: Some(now) };
            assert_eq!(FromHeaders::read(&metadata(headers)).expect("valid").over(said.clone()), expected);
        };
        check(&[], Priority::Batch, "tax");
        check(&[(TENANT, "police"), (TIMEOUT, "1H")], Priority::Batch, "police");
        check(&[(PRIORITY, "interactive")], Priority::Interactive, "tax");
        let refused = |headers: &[(&'static str, &str)], field: &str| {
            let error = FromHeaders::read(&metadata(headers)).expect_err(field);
            assert!(error.message().starts_with(&format!("{field}: ")), "{}", error.message());
        };
        refused(&[(PRIORITY, "urgent")], PRIORITY);
        refused(&[(TENANT, "a"), (TENANT, "b")], TENANT);
        refused(&[(TENANT, "\u{7a0e}")], TENANT);
        refused(&[(TIMEOUT, "soon")], TIMEOUT);
    }

    #[test]
    fn openengine_headers_are_checked() {
        let check = |headers: &[(&'static str, &str)], expected: Result<Priority, &str>| {
            let got = openengine_priority(&metadata(headers));
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
