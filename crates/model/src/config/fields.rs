//! Checked reads of single fields: every number that a file holds goes through here before anybody uses it.

use serde_json::{Map, Value};

use crate::ModelError;

/// Layers, heads, widths, experts: far above any real model, and small enough that products of two never overflow.
pub(crate) const COUNT_MAX: u64 = 1 << 24;

/// One value of a configuration, whichever file it came from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Scalar {
    Int(i128),
    Float(f64),
    Bool(bool),
    Text(String),
    /// A list or an object.
    Other,
}

type Lookup<'a> = dyn Fn(&str) -> Option<Scalar> + 'a;

/// The fields of one object of a file.
pub(crate) struct Fields<'a> {
    file: String,
    /// What stands before a field's name in the file: `rope_scaling.` or `deepseek2.`.
    prefix: String,
    lookup: Box<Lookup<'a>>,
}

impl<'a> Fields<'a> {
    pub fn new(file: impl Into<String>, prefix: &str, lookup: impl Fn(&str) -> Option<Scalar> + 'a) -> Self {
        Self { file: file.into(), prefix: prefix.into(), lookup: Box::new(lookup) }
    }

    /// A JSON object; `null` counts as absent.
    pub fn json(file: &str, prefix: &str, object: &'a Map<String, Value>) -> Self {
        Self::new(file, prefix, |field| match object.get(field)? {
            Value::Null => None,
            Value::Bool(b) => Some(Scalar::Bool(*b)),
            Value::String(s) => Some(Scalar::Text(s.clone())),
            Value::Number(n) => Some(match n.as_i128() {
                Some(i) => Scalar::Int(i),
                None => Scalar::Float(n.as_f64().unwrap_or(f64::NAN)),
            }),
            Value::Array(_) | Value::Object(_) => Some(Scalar::Other),
        })
    }

    pub fn has(&self, field: &str) -> bool {
        (self.lookup)(field).is_some()
    }

    pub fn error<T>(&self, field: &str, problem: impl Into<String>) -> Result<T, ModelError> {
        let field = format!("{}{field}", self.prefix);
        Err(ModelError::Config { file: self.file.clone(), field, problem: problem.into() })
    }

    /// Fails unless `ok`.
    pub fn require(&self, field: &str, ok: bool, problem: impl FnOnce() -> String) -> Result<(), ModelError> {
        if ok { Ok(()) } else { self.error(field, problem()) }
    }

    fn optional<T>(
        &self,
        field: &str,
        kind: &str,
        read: impl Fn(&Scalar) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        match (self.lookup)(field) {
            None => Ok(None),
            Some(value) => match read(&value) {
                Some(read) => Ok(Some(read)),
                None => self.error(field, format!("{value:?} is not {kind}")),
            },
        }
    }

    fn present<T>(&self, field: &str, value: Option<T>) -> Result<T, ModelError> {
        match value {
            Some(value) => Ok(value),
            None => self.error(field, "is missing"),
        }
    }

    /// A number of things, at least 1.
    pub fn count(&self, field: &str) -> Result<usize, ModelError> {
        let value = self.optional_count(field)?;
        self.present(field, value)
    }

    pub fn optional_count(&self, field: &str) -> Result<Option<usize>, ModelError> {
        match self.optional_size(field)? {
            Some(0) => self.error(field, "is 0"),
            count => Ok(count),
        }
    }

    /// A number of things, possibly 0.
    pub fn optional_size(&self, field: &str) -> Result<Option<usize>, ModelError> {
        let value = self.optional(field, "a whole number", |value| match value {
            Scalar::Int(i) => Some(*i),
            Scalar::Float(f) if f.fract() == 0.0 && f.abs() < 1e15 => Some(*f as i128),
            _ => None,
        })?;
        match value {
            None => Ok(None),
            Some(v) if (0..=i128::from(COUNT_MAX)).contains(&v) => Ok(Some(v as usize)),
            Some(v) => self.error(field, format!("{v} is not in 0..={COUNT_MAX}")),
        }
    }

    /// A finite number.
    pub fn optional_number(&self, field: &str) -> Result<Option<f64>, ModelError> {
        let value = self.optional(field, "a number", |value| match value {
            Scalar::Int(i) => Some(*i as f64),
            Scalar::Float(f) => Some(*f),
            _ => None,
        })?;
        match value {
            Some(v) if !v.is_finite() || v.abs() > 1e30 => self.error(field, format!("{v} is out of range")),
            value => Ok(value),
        }
    }

    /// A finite number above 0.
    pub fn optional_positive(&self, field: &str) -> Result<Option<f64>, ModelError> {
        match self.optional_number(field)? {
            Some(v) if v <= 0.0 => self.error(field, format!("{v} is not above 0")),
            value => Ok(value),
        }
    }

    pub fn positive(&self, field: &str) -> Result<f64, ModelError> {
        let value = self.optional_positive(field)?;
        self.present(field, value)
    }

    pub fn flag(&self, field: &str) -> Result<Option<bool>, ModelError> {
        self.optional(field, "true or false", |value| match value {
            Scalar::Bool(b) => Some(*b),
            _ => None,
        })
    }

    pub fn text(&self, field: &str) -> Result<Option<String>, ModelError> {
        self.optional(field, "a text", |value| match value {
            Scalar::Text(s) => Some(s.clone()),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_values_are_named() {
        let json =
            r#"{"a": 3, "zero": 0, "neg": -1, "huge": 1e300, "big": 99999999999, "half": 0.5, "s": "x", "n": null}"#;
        let object: Map<String, Value> = serde_json::from_str(json).unwrap();
        let f = Fields::json("config.json", "rope.", &object);
        assert_eq!(f.count("a").unwrap(), 3);
        assert_eq!(f.optional_count("n").unwrap(), None);
        assert_eq!(f.optional_size("zero").unwrap(), Some(0));
        assert_eq!(f.positive("half").unwrap(), 0.5);
        let check = |result: Result<usize, ModelError>, says: &str| {
            let error = result.expect_err(says).to_string();
            assert_eq!(error, says);
        };
        check(f.count("zero"), "config.json: rope.zero: is 0");
        check(f.count("neg"), "config.json: rope.neg: -1 is not in 0..=16777216");
        check(f.count("big"), "config.json: rope.big: 99999999999 is not in 0..=16777216");
        check(f.count("half"), "config.json: rope.half: Float(0.5) is not a whole number");
        check(f.count("s"), "config.json: rope.s: Text(\"x\") is not a whole number");
        check(f.count("n"), "config.json: rope.n: is missing");
        check(f.positive("huge").map(|_| 0), &format!("config.json: rope.huge: {} is out of range", 1e300));
        check(f.positive("neg").map(|_| 0), "config.json: rope.neg: -1 is not above 0");
        check(f.flag("a").map(|_| 0), "config.json: rope.a: Int(3) is not true or false");
    }
}
