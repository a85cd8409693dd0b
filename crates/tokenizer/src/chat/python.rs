//! Values as Python writes them: `str`, `repr` and `json.dumps`.

use std::fmt::Write;

use minijinja::value::ValueKind;
use minijinja::{Error, Value};

use super::bounds::{DEPTH_MAX, limit, type_error};

/// How `json.dumps` is called.
pub(super) struct JsonStyle {
    pub ensure_ascii: bool,
    pub indent: Option<usize>,
    pub item_separator: String,
    pub key_separator: String,
    pub sort_keys: bool,
}

/// `str(value)`; undefined is empty, as in Jinja. Stops with an error past `bytes_max`.
pub(super) fn text(value: &Value, bytes_max: usize) -> Result<String, Error> {
    match value.kind() {
        ValueKind::Undefined => Ok(String::new()),
        ValueKind::String => Ok(value.as_str().unwrap_or_default().to_owned()),
        _ => {
            let mut writer = Writer { out: String::new(), bytes_max };
            writer.repr(value, 0)?;
            Ok(writer.out)
        }
    }
}

/// `json.dumps(value)`. Stops with an error past `bytes_max`.
pub(super) fn json(value: &Value, style: &JsonStyle, bytes_max: usize) -> Result<String, Error> {
    let mut writer = Writer { out: String::new(), bytes_max };
    writer.json(value, style, 0)?;
    Ok(writer.out)
}

struct Writer {
    out: String,
    bytes_max: usize,
}

impl Writer {
    fn push(&mut self, text: &str) -> Result<(), Error> {
        if self.out.len() + text.len() > self.bytes_max {
            return Err(limit("it builds too much text"));
        }
        self.out.push_str(text);
        Ok(())
    }

    fn repr(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEPTH_MAX {
            return Err(limit("it nests lists too deeply"));
        }
        match value.kind() {
            ValueKind::Undefined => self.push("Undefined"),
            ValueKind::None => self.push("None"),
            ValueKind::Bool => self.push(if value.is_true() { "True" } else { "False" }),
            ValueKind::Number => self.push(&number(value)),
            ValueKind::String => self.push(&quoted(value.as_str().unwrap_or_default())),
            ValueKind::Seq | ValueKind::Iterable => {
                let (open, close) = if value.is_tuple() { ("(", ")") } else { ("[", "]") };
                self.push(open)?;
                let mut count = 0;
                for item in value.try_iter()?.checked() {
                    self.push(if count == 0 { "" } else { ", " })?;
                    self.repr(&item?, depth + 1)?;
                    count += 1;
                }
                self.push(if value.is_tuple() && count == 1 { "," } else { "" })?;
                self.push(close)
            }
            ValueKind::Map => {
                self.push("{")?;
                for (i, key) in value.try_iter()?.checked().enumerate() {
                    let key = key?;
                    self.push(if i == 0 { "" } else { ", " })?;
                    self.repr(&key, depth + 1)?;
                    self.push(": ")?;
                    self.repr(&value.get_item(&key)?, depth + 1)?;
                }
                self.push("}")
            }
            kind => Err(type_error(format!("a value of type {kind} cannot be written"))),
        }
    }

    fn json(&mut self, value: &Value, style: &JsonStyle, depth: usize) -> Result<(), Error> {
        if depth > DEPTH_MAX {
            return Err(limit("it nests lists too deeply"));
        }
        match value.kind() {
            ValueKind::None => self.push("null"),
            ValueKind::Bool => self.push(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.push(&number(value)),
            ValueKind::String => self.json_string(value.as_str().unwrap_or_default(), style),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?;
                self.json_items(("[", "]"), items.len(), style, depth, |w, i| w.json(&items[i], style, depth + 1))
            }
            ValueKind::Map => {
                let mut keys = value.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?;
                if style.sort_keys {
                    keys.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
                }
                self.json_items(("{", "}"), keys.len(), style, depth, |w, i| {
                    let key = &keys[i];
                    match key.as_str() {
                        Some(key) => w.json_string(key, style)?,
                        None if key.is_number() || key.kind() == ValueKind::Bool || key.is_none() => {
                            w.push("\"")?;
                            w.json(key, style, depth + 1)?;
                            w.push("\"")?;
                        }
                        None => return Err(type_error(format!("a {} cannot be a key in JSON", key.kind()))),
                    }
                    w.push(&style.key_separator)?;
                    w.json(&value.get_item(key)?, style, depth + 1)
                })
            }
            kind => Err(type_error(format!("a value of type {kind} is not JSON serializable"))),
        }
    }

    fn json_items(
        &mut self,
        brackets: (&str, &str),
        count: usize,
        style: &JsonStyle,
        depth: usize,
        mut item: impl FnMut(&mut Self, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.push(brackets.0)?;
        for i in 0..count {
            self.push(if i == 0 { "" } else { &style.item_separator })?;
            self.new_line(style, depth + 1)?;
            item(self, i)?;
        }
        if count > 0 {
            self.new_line(style, depth)?;
        }
        self.push(brackets.1)
    }

    fn new_line(&mut self, style: &JsonStyle, depth: usize) -> Result<(), Error> {
        let Some(indent) = style.indent else { return Ok(()) };
        let width = indent.saturating_mul(depth);
        if width > self.bytes_max {
            return Err(limit("it builds too much text"));
        }
        self.push("\n")?;
        self.push(&" ".repeat(width))
    }

    fn json_string(&mut self, text: &str, style: &JsonStyle) -> Result<(), Error> {
        let mut quoted = String::with_capacity(text.len().min(self.bytes_max) + 2);
        quoted.push('"');
        for c in text.chars() {
            match c {
                '"' => quoted.push_str("\\\""),
                '\\' => quoted.push_str("\\\\"),
                '\n' => quoted.push_str("\\n"),
                '\r' => quoted.push_str("\\r"),
                '\t' => quoted.push_str("\\t"),
                '\u{8}' => quoted.push_str("\\b"),
                '\u{c}' => quoted.push_str("\\f"),
                c if c < ' ' || (style.ensure_ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(quoted, "\\u{unit:04x}");
                    }
                }
                c => quoted.push(c),
            }
        }
        quoted.push('"');
        self.push(&quoted)
    }
}

/// `repr(number)`.
fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    let Ok(x) = f64::try_from(value.clone()) else { return value.to_string() };
    let magnitude = x.abs();
    if x.is_nan() {
        "nan".into()
    } else if x.is_infinite() {
        if x > 0.0 { "inf".into() } else { "-inf".into() }
    } else if x != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let text = format!("{x:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
        format!("{mantissa}e{sign}{digits:0>2}")
    } else if x.fract() == 0.0 {
        format!("{x:.1}")
    } else {
        format!("{x}")
    }
}

/// `repr(text)`.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if c < ' ' || c == '\u{7f}' => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}
