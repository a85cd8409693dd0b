//! On whose account a request runs: headers, which a gateway may set, come before the body.

use std::fmt::Display;
use std::time::{Duration, Instant};

use http::HeaderMap;
use lingqu_serving::RequestError;
use lingqu_types::{Priority, Service};
use serde_json::Value;

use crate::fields::{Fields, wrong_type};

const TENANT_HEADER: &str = "x-lingqu-tenant";
const PRIORITY_HEADER: &str = "x-lingqu-priority";
const TIMEOUT_HEADER: &str = "x-request-timeout-ms";
/// Nobody waits longer; keeps deadlines within every clock's range.
const TIMEOUT_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// What the headers say; what they leave open is the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FromHeaders {
    tenant: Option<String>,
    priority: Option<Priority>,
    timeout_ms: Option<u64>,
}

impl FromHeaders {
    pub fn read(headers: &HeaderMap) -> Result<Self, RequestError> {
        let text = |name: &str| match headers.get(name).map(|value| value.to_str()) {
            None => Ok(None),
            Some(Ok(text)) => Ok(Some(text)),
            Some(Err(_)) => Err(RequestError::invalid(name, "must be ASCII")),
        };
        Ok(Self {
            tenant: text(TENANT_HEADER)?.map(str::to_owned),
            priority: text(PRIORITY_HEADER)?.map(|name| priority(name, PRIORITY_HEADER)).transpose()?,
            timeout_ms: text(TIMEOUT_HEADER)?.map(timeout_ms).transpose()?,
        })
    }
}

/// The header's milliseconds.
fn timeout_ms(text: &str) -> Result<u64, RequestError> {
    text.parse().map_err(|_| not_milliseconds(TIMEOUT_HEADER, text))
}

fn not_milliseconds(path: &str, value: impl Display) -> RequestError {
    RequestError::invalid(path, format_args!("{value} is not a whole number of milliseconds"))
}

fn priority(name: &str, path: &str) -> Result<Priority, RequestError> {
    match name {
        "interactive" => Ok(Priority::Interactive),
        "batch" => Ok(Priority::Batch),
        _ => Err(RequestError::invalid(path, "not one of interactive, batch")),
    }
}

/// Reads `tenant`, `priority` (a name, or vLLM's number: above 0 is less urgent) and `timeout_ms`.
pub fn service(fields: &mut Fields, headers: FromHeaders, arrived: Instant) -> Result<Service, RequestError> {
    let path = fields.path("priority");
    let of_body = match fields.take("priority") {
        None => None,
        Some(Value::String(name)) => Some(priority(&name, &path)?),
        Some(Value::Number(number)) => match number.as_i64() {
            Some(..=0) => Some(Priority::Interactive),
            Some(1..) => Some(Priority::Batch),
            None => return Err(RequestError::invalid(&path, "must be a whole number")),
        },
        Some(other) => return Err(wrong_type(&path, "interactive, batch or a number", &other)),
    };
    let tenant = fields.string("tenant")?;
    let path = fields.path("timeout_ms");
    let timeout = match fields.take("timeout_ms") {
        None => None,
        Some(value) => Some(value.as_u64().ok_or_else(|| not_milliseconds(&path, &value))?),
    };
    let timeout = headers.timeout_ms.or(timeout).map(|ms| Duration::from_millis(ms).min(TIMEOUT_MAX));
    Ok(Service {
        priority: headers.priority.or(of_body).unwrap_or_default(),
        tenant: headers.tenant.or(tenant).unwrap_or_default().into(),
        deadline: timeout.map(|timeout| arrived + timeout),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(headers: &[(&'static str, &str)], body: Value) -> Result<(Priority, String, Option<u128>), RequestError> {
        let arrived = Instant::now();
        let headers: HeaderMap = headers.iter().map(|&(k, v)| (k.parse().unwrap(), v.parse().unwrap())).collect();
        let mut fields = Fields::parse(body.to_string().as_bytes())?;
        let service = service(&mut fields, FromHeaders::read(&headers)?, arrived)?;
        let left_ms = service.deadline.map(|deadline| (deadline - arrived).as_millis());
        Ok((service.priority, service.tenant.to_string(), left_ms))
    }

    #[test]
    fn headers_come_before_the_body() {
        use Priority::{Batch, Interactive};
        type Expected = (Priority, &'static str, Option<u128>);
        let check = |headers: &[(&'static str, &str)], body: Value, (priority, tenant, ms): Expected| {
            let expected = (priority, tenant.to_owned(), ms);
            assert_eq!(read(headers, body.clone()), Ok(expected), "{headers:?} {body}");
        };
        let all = json!({"tenant": "tax", "priority": "batch", "timeout_ms": 500});
        check(&[], json!({}), (Interactive, "", None));
        check(&[], all.clone(), (Batch, "tax", Some(500)));
        check(&[(TENANT_HEADER, "police")], all.clone(), (Batch, "police", Some(500)));
        check(&[(PRIORITY_HEADER, "interactive"), (TIMEOUT_HEADER, "20")], all, (Interactive, "tax", Some(20)));
        check(&[], json!({"priority": 0}), (Interactive, "", None));
        check(&[], json!({"priority": 7}), (Batch, "", None));
        check(&[], json!({"timeout_ms": u64::MAX, "priority": -1}), (Interactive, "", Some(TIMEOUT_MAX.as_millis())));
    }

    #[test]
    fn what_cannot_be_is_named() {
        let check = |headers: &[(&'static str, &str)], body: Value, field: &str| {
            let error = read(headers, body).expect_err(field);
            assert!(error.to_string().starts_with(&format!("{field}: ")), "{error}");
        };
        check(&[], json!({"priority": "urgent"}), "priority");
        check(&[], json!({"priority": 0.5}), "priority");
        check(&[], json!({"priority": []}), "priority");
        check(&[], json!({"tenant": 7}), "tenant");
        check(&[], json!({"timeout_ms": "soon"}), "timeout_ms");
        check(&[], json!({"timeout_ms": -1}), "timeout_ms");
        check(&[(PRIORITY_HEADER, "urgent")], json!({}), PRIORITY_HEADER);
        check(&[(TIMEOUT_HEADER, "soon")], json!({}), TIMEOUT_HEADER);
        check(&[(TENANT_HEADER, "\u{7a0e}")], json!({}), TENANT_HEADER);
    }
}
