//! A request's JSON object, read field by field: null is as good as absent, and a wrong type is named by its path.

use std::fmt::Display;

use lingqu_serving::RequestError;
use serde_json::{Map, Value};

/// An object and where it stands in the request.
pub struct Fields {
    /// Empty, or ends where a name may follow: `stream_options.`.
    prefix: String,
    map: Map<String, Value>,
}

impl Fields {
    /// The whole request.
    ///
    /// # Errors
    /// What is not a JSON object, or nests deeper than serde_json's 128 levels.
    pub fn parse(body: &[u8]) -> Result<Self, RequestError> {
        let value: Value = serde_json::from_slice(body).map_err(|e| RequestError::invalid("body", e))?;
        match value {
            Value::Object(map) => Ok(Self { prefix: String::new(), map }),
            other => Err(wrong_type("body", "a JSON object", &other)),
        }
    }

    /// The object at `path`.
    pub fn of(value: Value, path: &str) -> Result<Self, RequestError> {
        match value {
            Value::Object(map) => Ok(Self { prefix: format!("{path}."), map }),
            other => Err(wrong_type(path, "an object", &other)),
        }
    }

    /// Takes a field out, whatever it holds.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// All that was not taken.
    pub fn rest(self) -> Map<String, Value> {
        self.map
    }

    /// The field's path in the request.
    pub fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// An error of a field.
    pub fn invalid(&self, name: &str, problem: impl Display) -> RequestError {
        RequestError::invalid(&self.path(name), problem)
    }

    pub fn string(&mut self, name: &str) -> Result<Option<String>, RequestError> {
        self.take(name).map(|value| string(value, &self.path(name))).transpose()
    }

    /// A string that must be there.
    pub fn needed_string(&mut self, name: &str) -> Result<String, RequestError> {
        self.string(name)?.ok_or_else(|| self.invalid(name, "is needed"))
    }

    pub fn flag(&mut self, name: &str) -> Result<Option<bool>, RequestError> {
        let value = self.take(name);
        let typed = |value: Value| value.as_bool().ok_or_else(|| wrong_type(&self.path(name), "true or false", &value));
        value.map(typed).transpose()
    }

    pub fn number(&mut self, name: &str) -> Result<Option<f32>, RequestError> {
        self.take(name).map(|value| number(&value, &self.path(name))).transpose()
    }

    /// A whole number from 0 to `u32::MAX`.
    pub fn count(&mut self, name: &str) -> Result<Option<u32>, RequestError> {
        self.take(name).map(|value| count(&value, &self.path(name))).transpose()
    }

    pub fn object(&mut self, name: &str) -> Result<Option<Self>, RequestError> {
        self.take(name).map(|value| Self::of(value, &self.path(name))).transpose()
    }

    pub fn array(&mut self, name: &str) -> Result<Option<Vec<Value>>, RequestError> {
        self.take(name).map(|value| array(value, &self.path(name))).transpose()
    }
}

pub fn string(value: Value, path: &str) -> Result<String, RequestError> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(wrong_type(path, "a string", &other)),
    }
}

pub fn number(value: &Value, path: &str) -> Result<f32, RequestError> {
    value.as_f64().map(|number| number as f32).ok_or_else(|| wrong_type(path, "a number", value))
}

pub fn count(value: &Value, path: &str) -> Result<u32, RequestError> {
    match value.as_u64().map(u32::try_from) {
        Some(Ok(count)) => Ok(count),
        _ if value.is_number() => {
            let problem = format!("{value} is not a whole number in 0..={}", u32::MAX);
            Err(RequestError::invalid(path, problem))
        }
        _ => Err(wrong_type(path, "a whole number", value)),
    }
}

pub fn array(value: Value, path: &str) -> Result<Vec<Value>, RequestError> {
    match value {
        Value::Array(items) => Ok(items),
        other => Err(wrong_type(path, "an array", &other)),
    }
}

pub fn wrong_type(path: &str, wanted: &str, got: &Value) -> RequestError {
    let got = match got {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    };
    RequestError::invalid(path, format_args!("must be {wanted}, not {got}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn wrong_types_are_named_by_path() {
        type Read = fn(&mut Fields) -> Result<(), RequestError>;
        let check = |value: Value, read: Read, says: &str| {
            let mut fields = Fields::of(json!({"x": value}), "outer").expect("an object");
            assert_eq!(read(&mut fields).expect_err(says).to_string(), format!("outer.x: {says}"));
            let mut null = Fields::of(json!({"x": null}), "outer").expect("an object");
            assert_eq!(read(&mut null), Ok(()), "null is absent");
        };
        check(json!(1), |f| f.string("x").map(drop), "must be a string, not a number");
        check(json!("yes"), |f| f.flag("x").map(drop), "must be true or false, not a string");
        check(json!("1"), |f| f.number("x").map(drop), "must be a number, not a string");
        check(json!(true), |f| f.count("x").map(drop), "must be a whole number, not a boolean");
        check(json!(-1), |f| f.count("x").map(drop), "-1 is not a whole number in 0..=4294967295");
        check(json!(1.5), |f| f.count("x").map(drop), "1.5 is not a whole number in 0..=4294967295");
        check(json!([]), |f| f.object("x").map(drop), "must be an object, not an array");
        check(json!({}), |f| f.array("x").map(drop), "must be an array, not an object");
    }

    #[test]
    fn bodies_that_are_no_object_are_refused() {
        let check = |body: &[u8]| {
            let error = Fields::parse(body).err().expect("refused");
            assert!(error.to_string().starts_with("body: "), "{error}");
        };
        check(b"");
        check(b"[]");
        check(b"{\"a\":}");
        check(b"\xff");
        check("{\"a\":\"\\ud800\"}".as_bytes());
        check("[".repeat(100_000).as_bytes());
        check("{\"a\":".repeat(100_000).as_bytes());
    }
}
