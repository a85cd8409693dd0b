//! Bounds on what a template may do: a hostile one must end in an error, not in an empty memory or a full stack.
//!
//! Instructions are counted by the engine (fuel). What one instruction may cost is bounded here: the compiled program's
//! operators that can build or walk large values are replaced by calls to the functions of this file, which charge a
//! budget of bytes that grows with the conversation. Their names are no identifiers, so a template cannot name them.

use std::collections::BTreeMap;

use minijinja::machinery::{Instruction, Instructions};
use minijinja::value::{Kwargs, Rest, Tuple, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};

use super::python;

pub(super) type Program<'s> = Instructions<'s>;
pub(super) type Blocks<'s> = BTreeMap<&'s str, Instructions<'s>>;

/// The longest published templates have some 20 KB.
pub(super) const SOURCE_BYTES_MAX: usize = 256 << 10;
/// Text between tags.
pub(super) const LITERAL_BYTES_MAX: usize = 32 << 10;
/// Literal text written in one rendering at most: instructions times the longest literal.
pub(super) const LITERAL_WORK_BYTES_MAX: u64 = 256 << 20;
/// Instructions of one rendering; a message takes some 50 to 200.
pub(super) const FUEL_MAX: u64 = 4_000_000;
/// Frames; a macro call takes four. Small enough for a thread of 2 MiB.
pub(super) const RECURSION_MAX: usize = 128;
/// Nesting of lists and maps.
pub(super) const DEPTH_MAX: usize = 64;
/// Items of a list or map, counting what is inside.
const ITEMS_MAX: usize = 200_000;
/// Bytes built in one rendering, on top of 32 for each byte of the conversation.
const BUDGET_BYTES: u64 = 8 << 20;
const BUDGET_FACTOR: u64 = 32;
/// What a value costs besides its bytes.
const ITEM_BYTES: usize = 32;

/// The context's name for the budget. Not an identifier: no template can read or set it.
pub(super) const BUDGET_KEY: &str = " budget";

/// A bound that was met, found again in the chain of causes.
#[derive(Debug)]
pub(super) struct LimitReached(pub &'static str);

impl std::fmt::Display for LimitReached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for LimitReached {}

pub(super) fn limit(what: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, what).with_source(LimitReached(what))
}

pub(super) fn type_error(what: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

/// Bytes that may still be built in this rendering.
struct Budget {
    bytes: u64,
}

/// What a conversation of this size may cost.
pub(super) fn budget_bytes(context: &serde_json::Map<String, serde_json::Value>) -> u64 {
    fn bytes(value: &serde_json::Value) -> u64 {
        match value {
            serde_json::Value::String(s) => s.len() as u64 + 8,
            serde_json::Value::Array(items) => items.iter().map(bytes).sum::<u64>() + 8,
            serde_json::Value::Object(map) => map.iter().map(|(k, v)| k.len() as u64 + bytes(v)).sum::<u64>() + 8,
            _ => 8,
        }
    }
    BUDGET_BYTES + BUDGET_FACTOR * context.values().map(bytes).sum::<u64>()
}

/// Takes bytes from the budget before they are built.
pub(super) fn charge(state: &mut State, bytes: usize) -> Result<(), Error> {
    let whole = state.lookup(BUDGET_KEY).and_then(|v| u64::try_from(v).ok()).unwrap_or(BUDGET_BYTES);
    let budget = state.get_or_insert_extension_with(|| Budget { bytes: whole });
    match budget.bytes.checked_sub(bytes as u64) {
        Some(left) => {
            budget.bytes = left;
            Ok(())
        }
        None => Err(limit("it builds too much text")),
    }
}

/// What is left, for writers that stop by themselves.
pub(super) fn bytes_left(state: &mut State) -> Result<usize, Error> {
    charge(state, 0)?;
    let left = state.get_extension::<Budget>().map_or(0, |b| b.bytes);
    Ok(usize::try_from(left).unwrap_or(usize::MAX))
}

/// `str(value)` in Python, charged.
pub(super) fn to_text(state: &mut State, value: &Value) -> Result<String, Error> {
    let text = match value.as_str() {
        Some(s) => {
            charge(state, s.len())?;
            return Ok(s.to_owned());
        }
        None => python::text(value, bytes_left(state)?)?,
    };
    charge(state, text.len())?;
    Ok(text)
}

/// Charges a list or map for all that is in it; refuses what is too large or too deep to walk.
pub(super) fn charge_items(state: &mut State, value: &Value) -> Result<(), Error> {
    let mut left = ITEMS_MAX;
    count_items(value, 0, &mut left)?;
    charge(state, (ITEMS_MAX - left) * ITEM_BYTES)
}

fn count_items(value: &Value, depth: usize, left: &mut usize) -> Result<(), Error> {
    *left = left.checked_sub(1).ok_or_else(|| limit("it builds too large a list"))?;
    if !is_container(value) {
        return Ok(());
    }
    if depth == DEPTH_MAX {
        return Err(limit("it nests lists too deeply"));
    }
    let is_map = value.kind() == ValueKind::Map;
    for item in value.try_iter()?.checked() {
        let item = item?;
        let item = if is_map { value.get_item(&item)? } else { item };
        count_items(&item, depth + 1, left)?;
    }
    Ok(())
}

pub(super) fn is_container(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map)
}

/// Puts checked calls in the place of operators. Each takes as many values from the stack and puts back one, so jumps
/// stay where they are.
pub(super) fn replace_operators(program: &mut Program<'_>) -> Result<(), Error> {
    let mut index = 0;
    while let Some(instruction) = program.get_mut(index) {
        let (name, arguments) = match instruction {
            Instruction::Add => ("+", 2),
            Instruction::Mul => ("*", 2),
            Instruction::StringConcat => ("~", 2),
            Instruction::Eq => ("==", 2),
            Instruction::Ne => ("!=", 2),
            Instruction::Lt => ("<", 2),
            Instruction::Lte => ("<=", 2),
            Instruction::Gt => (">", 2),
            Instruction::Gte => (">=", 2),
            Instruction::In => ("in", 2),
            Instruction::BuildList(Some(n)) => ("[]", *n),
            Instruction::BuildTuple(Some(n)) => ("()", *n),
            Instruction::BuildMap(pairs) => ("{}", *pairs * 2),
            Instruction::CompareAndPreserve(_) => {
                let what = "chained comparisons (a < b < c) are not supported";
                return Err(Error::new(ErrorKind::SyntaxError, what));
            }
            _ => {
                index += 1;
                continue;
            }
        };
        let arguments = u16::try_from(arguments)
            .map_err(|_| Error::new(ErrorKind::SyntaxError, "a list has more than 65,535 items"))?;
        *instruction = Instruction::CallFunction(name, Some(arguments));
        index += 1;
    }
    Ok(())
}

/// Registers the replacements, and writes values as Python does, counted.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.add_function("+", add);
    environment.add_function("*", multiply);
    environment.add_function("~", |state: &mut State, a: &Value, b: &Value| -> Result<Value, Error> {
        let mut text = to_text(state, a)?;
        text.push_str(&to_text(state, b)?);
        Ok(Value::from(text))
    });
    environment.add_function("in", |state: &mut State, needle: &Value, container: &Value| -> Result<bool, Error> {
        if is_container(needle) {
            check_comparable(state, needle, container)?;
        }
        minijinja::tests::is_in(state, needle, container)
    });
    install_comparison(environment, "==", |a, b| a == b);
    install_comparison(environment, "!=", |a, b| a != b);
    install_comparison(environment, "<", |a, b| a < b);
    install_comparison(environment, "<=", |a, b| a <= b);
    install_comparison(environment, ">", |a, b| a > b);
    install_comparison(environment, ">=", |a, b| a >= b);
    environment.add_function("[]", |state: &mut State, items: Rest<Value>| {
        let list = Value::from(items.0);
        charge_items(state, &list).map(|()| list)
    });
    environment.add_function("()", |state: &mut State, items: Rest<Value>| {
        let tuple = Value::from(Tuple::from(items.0));
        charge_items(state, &tuple).map(|()| tuple)
    });
    environment.add_function("{}", |state: &mut State, items: Rest<Value>| {
        let mut pairs = Vec::with_capacity(items.len() / 2);
        for pair in items.chunks_exact(2) {
            if is_container(&pair[0]) {
                return Err(type_error("a map's keys must be plain values".into()));
            }
            pairs.push((pair[0].clone(), pair[1].clone()));
        }
        let map = Value::from_pairs(pairs);
        charge_items(state, &map).map(|()| map)
    });
    environment.set_formatter(write_value);
}

fn write_value(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    let text = to_text(state, value)?;
    out.write_str(&text).map_err(|_| Error::new(ErrorKind::WriteFailure, "cannot write"))
}

/// Registers a comparison as an operator and as the test of the same name (`select("==", x)`).
fn install_comparison(environment: &mut Environment<'static>, name: &'static str, compare: fn(&Value, &Value) -> bool) {
    let checked = move |state: &mut State, a: &Value, b: &Value| -> Result<bool, Error> {
        check_comparable(state, a, b)?;
        Ok(compare(a, b))
    };
    environment.add_function(name, checked);
    environment.add_test(name, checked);
    let aliases: &[&str] = match name {
        "==" => &["eq", "equalto"],
        "!=" => &["ne"],
        "<" => &["lt", "lessthan"],
        "<=" => &["le"],
        ">" => &["gt", "greaterthan"],
        _ => &["ge"],
    };
    for alias in aliases {
        environment.add_test(*alias, checked);
    }
}

/// Comparing walks both values; a plain value ends the walk at once.
fn check_comparable(state: &mut State, a: &Value, b: &Value) -> Result<(), Error> {
    if is_container(a) && is_container(b) {
        charge_items(state, a)?;
        charge_items(state, b)?;
    }
    Ok(())
}

fn add(state: &mut State, a: &Value, b: &Value) -> Result<Value, Error> {
    if let (Some(a), Some(b)) = (a.as_str(), b.as_str()) {
        charge(state, a.len() + b.len())?;
        return Ok(Value::from([a, b].concat()));
    }
    if a.is_number() && b.is_number() {
        return number(a, b, i128::checked_add, |a, b| a + b);
    }
    let list = |v: &Value| matches!(v.kind(), ValueKind::Seq | ValueKind::Iterable);
    if list(a) && list(b) {
        charge_items(state, a)?;
        charge_items(state, b)?;
        let items = a.try_iter()?.checked().chain(b.try_iter()?.checked()).collect::<Result<Vec<_>, _>>()?;
        return Ok(if a.is_tuple() { Value::from(Tuple::from(items)) } else { Value::from(items) });
    }
    Err(type_error(format!("cannot add {} and {}", a.kind(), b.kind())))
}

fn multiply(state: &mut State, a: &Value, b: &Value) -> Result<Value, Error> {
    if a.is_number() && b.is_number() {
        return number(a, b, i128::checked_mul, |a, b| a * b);
    }
    let (text, times) = if a.is_number() { (b, a) } else { (a, b) };
    let (Some(text), Some(times)) = (text.as_str(), times.as_i64()) else {
        return Err(type_error(format!("cannot multiply {} and {}", a.kind(), b.kind())));
    };
    let times = usize::try_from(times).unwrap_or(0);
    charge(state, text.len().saturating_mul(times))?;
    Ok(Value::from(text.repeat(times)))
}

fn number(
    a: &Value,
    b: &Value,
    whole: fn(i128, i128) -> Option<i128>,
    real: fn(f64, f64) -> f64,
) -> Result<Value, Error> {
    if a.is_integer() && b.is_integer() {
        let result = whole(i128::try_from(a.clone())?, i128::try_from(b.clone())?);
        let result = result.ok_or_else(|| type_error("a number is too large".into()))?;
        return Ok(i64::try_from(result).map_or_else(|_| Value::from(result), Value::from));
    }
    Ok(Value::from(real(f64::try_from(a.clone())?, f64::try_from(b.clone())?)))
}

/// Named arguments that a function does not know are an error, as in Python.
pub(super) fn all_used(kwargs: &Kwargs) -> Result<(), Error> {
    kwargs.assert_all_used()
}
