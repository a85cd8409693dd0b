//! Functions, filters and methods of templates: Hugging Face's own, and those of Jinja and Python whose work must be
//! counted.

use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::bounds::{all_used, bytes_left, charge, charge_items, to_text, type_error};
use super::python::{self, JsonStyle};

/// The context's name for the clock. Not an identifier: no template can read or set it.
pub(super) const NOW_KEY: &str = " now";

/// What `raise_exception` was called with, found again in the chain of causes.
#[derive(Debug)]
pub(super) struct Raised(pub String);

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

pub(super) fn install(environment: &mut Environment<'static>) {
    // Work that is not bounded by what goes in, or that walks values unseen; no known template uses them.
    for name in ["format", "pprint", "batch", "slice", "groupby", "zip", "chain", "sum", "unique", "min", "max", "sort"]
    {
        environment.remove_filter(name);
    }
    environment.remove_global("debug");
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(message)))
    });
    environment.add_function("strftime_now", |state: &mut State, format: &str| -> Result<String, Error> {
        let now_s = match state.lookup(NOW_KEY).and_then(|v| v.as_i64()) {
            Some(now_s) => now_s,
            None => std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs() as i64),
        };
        charge(state, format.len().saturating_mul(16))?;
        Ok(strftime(format, now_s))
    });
    environment.add_filter("tojson", tojson);
    environment.add_filter("string", |state: &mut State, value: &Value| to_text(state, value));
    environment.add_filter("join", |state: &mut State, list: &Value, separator: Option<&str>| {
        join(state, list, separator.unwrap_or_default())
    });
    environment.add_filter("replace", |state: &mut State, text: &str, old: &str, new: &str| {
        replace(state, text, old, new, None)
    });
    environment.add_filter("indent", indent);
    environment.add_filter("list", list);
    environment.add_filter("dictsort", |state: &mut State, value: &Value, kwargs: Kwargs| {
        charge_items(state, value)?;
        minijinja::filters::dictsort(value, kwargs)
    });
    environment.set_unknown_method_callback(method);
}

/// Hugging Face's `tojson`: `json.dumps` with its own defaults, and no HTML escapes.
fn tojson(state: &mut State, value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    // json.dumps: with an indent, items end the line without a space.
    let (mut item_separator, mut key_separator) =
        (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned());
    if let Some(separators) = separators {
        let [item, key] = separators.as_slice() else {
            return Err(type_error("tojson takes two separators".into()));
        };
        (item_separator, key_separator) = (item.clone(), key.clone());
    }
    let style = JsonStyle {
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        indent,
        item_separator,
        key_separator,
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    all_used(&kwargs)?;
    let text = python::json(value, &style, bytes_left(state)?)?;
    charge(state, text.len())?;
    Ok(Value::from(text))
}

fn join(state: &mut State, list: &Value, separator: &str) -> Result<Value, Error> {
    let mut text = String::new();
    for (i, item) in list.try_iter()?.checked().enumerate() {
        if i > 0 {
            charge(state, separator.len())?;
            text.push_str(separator);
        }
        text.push_str(&to_text(state, &item?)?);
    }
    Ok(Value::from(text))
}

fn replace(state: &mut State, text: &str, old: &str, new: &str, count: Option<usize>) -> Result<Value, Error> {
    let found = text.matches(old).count().min(count.unwrap_or(usize::MAX));
    charge(state, text.len().saturating_add(found.saturating_mul(new.len())))?;
    Ok(Value::from(match count {
        Some(count) => text.replacen(old, new, count),
        None => text.replace(old, new),
    }))
}

/// Jinja's `indent(width=4, first=false, blank=false)`; the width may be a text.
fn indent(state: &mut State, text: &str, arguments: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let arguments = arguments.into_values();
    let (positional, kwargs) = match arguments.split_last() {
        Some((last, rest)) if last.is_kwargs() => (rest, Kwargs::try_from(last.clone())?),
        _ => (&arguments[..], Kwargs::from_iter(std::iter::empty::<(&str, Value)>())),
    };
    let (width, first, blank): (Option<Value>, Option<bool>, Option<bool>) = from_args(positional)?;
    let width: Value = width.or(kwargs.get("width")?).unwrap_or_else(|| Value::from(4));
    let first = first.or(kwargs.get("first")?).unwrap_or(false);
    let blank = blank.or(kwargs.get("blank")?).unwrap_or(false);
    all_used(&kwargs)?;
    let lines = text.split('\n').count();
    let one = match width.as_usize() {
        Some(spaces) => {
            charge(state, spaces.saturating_mul(lines))?;
            " ".repeat(spaces)
        }
        None => width.as_str().ok_or_else(|| type_error("indent takes a number or a text".into()))?.to_owned(),
    };
    charge(state, text.len().saturating_add(one.len().saturating_mul(lines)))?;
    let mut out = String::with_capacity(text.len() + one.len() * lines);
    for (i, line) in text.split('\n').enumerate() {
        if i > 0 {
            out.push('\n');
        }
        if (i > 0 || first) && (blank || !line.is_empty()) {
            out.push_str(&one);
        }
        out.push_str(line);
    }
    Ok(Value::from(out))
}

fn list(state: &mut State, value: &Value) -> Result<Value, Error> {
    let mut items = Vec::new();
    if let Some(text) = value.as_str() {
        charge(state, text.len().saturating_mul(std::mem::size_of::<Value>()))?;
        items.extend(text.chars().map(Value::from));
    } else {
        for item in value.try_iter()?.checked() {
            charge(state, std::mem::size_of::<Value>())?;
            items.push(item?);
        }
    }
    Ok(Value::from(items))
}

/// Python's methods of strings, lists and maps.
fn method(state: &mut State, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        match name {
            "replace" => {
                let (old, new, count): (&str, &str, Option<i64>) = from_args(arguments)?;
                let count = count.and_then(|n| usize::try_from(n).ok());
                return replace(state, text, old, new, count);
            }
            "join" => {
                let (list,): (&Value,) = from_args(arguments)?;
                return join(state, list, text);
            }
            "removeprefix" | "removesuffix" => {
                let (part,): (&str,) = from_args(arguments)?;
                let cut = if name == "removeprefix" { text.strip_prefix(part) } else { text.strip_suffix(part) };
                charge(state, text.len())?;
                return Ok(Value::from(cut.unwrap_or(text)));
            }
            "format" => return Err(Error::from(ErrorKind::UnknownMethod)),
            // The pieces, each with its own value.
            "split" | "splitlines" | "rsplit" => {
                let pieces = match arguments.first().and_then(Value::as_str) {
                    Some(separator) if !separator.is_empty() => text.matches(separator).count(),
                    _ => text.bytes().filter(u8::is_ascii_whitespace).count(),
                };
                charge(state, text.len() + (pieces + 1) * std::mem::size_of::<Value>())?;
            }
            // At most three times as long (upper case of ß and the like).
            _ => charge(state, text.len().saturating_mul(3))?,
        }
    } else if matches!(value.kind(), ValueKind::Seq | ValueKind::Map) && name == "count" {
        charge_items(state, value)?;
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, arguments)
}

/// The directives of C's `strftime` that templates use, in English, UTC. Others stay as they are.
fn strftime(format: &str, unix_s: i64) -> String {
    const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let (days, seconds) = (unix_s.div_euclid(86_400), unix_s.rem_euclid(86_400));
    let (year, month, day) = civil_date(days);
    let day_of_year = days - days_before(year) + 1;
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let weekday = DAYS[(days + 4).rem_euclid(7) as usize];
    let month_name = MONTHS[month as usize - 1];
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = rest.next();
        let padded = directive != Some('-');
        if !padded {
            directive = rest.next();
        }
        let two = |n: i64| if padded { format!("{n:02}") } else { n.to_string() };
        match directive {
            Some('Y') => out.push_str(&year.to_string()),
            Some('y') => out.push_str(&two(year.rem_euclid(100))),
            Some('m') => out.push_str(&two(month)),
            Some('d') => out.push_str(&two(day)),
            Some('e') => out.push_str(&format!("{day:2}")),
            Some('H') => out.push_str(&two(hour)),
            Some('I') => out.push_str(&two((hour + 11) % 12 + 1)),
            Some('M') => out.push_str(&two(minute)),
            Some('S') => out.push_str(&two(second)),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('B') => out.push_str(month_name),
            Some('b') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(weekday),
            Some('a') => out.push_str(&weekday[..3]),
            Some('j') => out.push_str(&if padded { format!("{day_of_year:03}") } else { day_of_year.to_string() }),
            Some('F') => out.push_str(&format!("{year}-{month:02}-{day:02}")),
            Some('T') => out.push_str(&format!("{hour:02}:{minute:02}:{second:02}")),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar.
fn civil_date(days: i64) -> (i64, i64, i64) {
    // An average year is 365.2425 days long; the guess is at most one off.
    let mut year = 1970 + days * 10_000 / 3_652_425;
    while days_before(year) > days {
        year -= 1;
    }
    while days_before(year + 1) <= days {
        year += 1;
    }
    let leap = days_before(year + 1) - days_before(year) == 366;
    let lengths = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut day = days - days_before(year);
    let mut month = 0;
    while day >= lengths[month] {
        day -= lengths[month];
        month += 1;
    }
    (year, month as i64 + 1, day + 1)
}

/// Days from 1970-01-01 to the first of January of a year.
fn days_before(year: i64) -> i64 {
    let y = year - 1;
    let leap_days = y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400);
    (year - 1970) * 365 + leap_days - (1969 / 4 - 1969 / 100 + 1969 / 400)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let check = |unix_s: i64, format: &str, text: &str| assert_eq!(strftime(format, unix_s), text);
        check(0, "%Y-%m-%d %H:%M:%S %A", "1970-01-01 00:00:00 Thursday");
        check(951_782_400, "%d %b %Y, day %j", "29 Feb 2000, day 060");
        check(1_721_952_000, "%d %b %Y", "26 Jul 2024");
        check(-1, "%F %T", "1969-12-31 23:59:59");
        check(1_700_000_000, "%-d %B %y %I:%M %p 100%% %Q%", "14 November 23 10:13 PM 100% %Q%");
        // An absurd clock must not spin.
        let _ = strftime("%Y", i64::MAX);
    }
}
