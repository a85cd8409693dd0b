//! The head of a call: all up to its arguments.

use std::ops::Range;

use super::format::{CALL_BEGIN, CALL_END, CALLS_BEGIN, FENCE, FENCE_JSON, PYTHON_TAG, SEP, TAG_OPEN, ToolFormat};
use super::json::{Cursor, Short};

/// Bytes of a head, at most: so much text is held back until it is clear whether it is a call.
const HEAD_BYTES_MAX: usize = 8 << 10;
/// OpenAI allows 64.
const NAME_BYTES_MAX: usize = 256;

pub(crate) struct Head {
    pub name: String,
    pub arguments: Arguments,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arguments {
    /// Their brace stands here, and they may be under way.
    From(usize),
    /// They stood before the name. The object goes on at `next`.
    Within { range: Range<usize>, next: usize },
    /// There are none. The call ends before `next`.
    None { next: usize },
}

/// Reads the head that `text` begins with, from its opening mark on. What is told does not depend on what follows.
pub(crate) fn read(format: ToolFormat, text: &str) -> Result<Head, Short> {
    let seen = floor_boundary(text, HEAD_BYTES_MAX);
    let mut cursor = Cursor { text: &text[..seen], at: 0 };
    let head = match format {
        ToolFormat::DeepSeekV3 | ToolFormat::DeepSeekV31 => deepseek(&mut cursor),
        ToolFormat::Hermes => tagged(&mut cursor),
        ToolFormat::Llama3 => llama(&mut cursor),
    };
    match head {
        Err(Short::More) if seen < text.len() => Err(Short::Broken),
        Ok(head) if head.name.is_empty() || head.name.len() > NAME_BYTES_MAX => Err(Short::Broken),
        head => head,
    }
}

/// `<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>name`, a line end, a fence, the arguments; or, as
/// V3.1 has it, the name in the place of `function` and the arguments at once.
fn deepseek(cursor: &mut Cursor<'_>) -> Result<Head, Short> {
    if cursor.take(CALLS_BEGIN)? {
        cursor.skip_space();
    }
    cursor.expect(CALL_BEGIN)?;
    let kind = until(cursor, SEP)?.trim();
    cursor.skip_space();
    if cursor.peek()? == b'{' {
        return Ok(Head { name: kind.to_owned(), arguments: Arguments::From(cursor.at) });
    }
    if cursor.take(CALL_END)? {
        return Ok(Head { name: kind.to_owned(), arguments: Arguments::None { next: cursor.at } });
    }
    if kind != "function" {
        return Err(Short::Broken);
    }
    let name = until(cursor, "\n")?.trim().to_owned();
    cursor.skip_space();
    let fenced = cursor.take(FENCE_JSON)? || cursor.take(FENCE)?;
    cursor.skip_space();
    let arguments = match cursor.peek()? {
        b'{' => Arguments::From(cursor.at),
        _ if fenced && cursor.take(FENCE)? => Arguments::None { next: cursor.at },
        _ => return Err(Short::Broken),
    };
    Ok(Head { name, arguments })
}

fn tagged(cursor: &mut Cursor<'_>) -> Result<Head, Short> {
    cursor.expect(TAG_OPEN)?;
    cursor.skip_space();
    object(cursor, false)
}

fn llama(cursor: &mut Cursor<'_>) -> Result<Head, Short> {
    cursor.take(PYTHON_TAG)?;
    cursor.skip_space();
    // Any JSON may be an answer: a call is only what says both which function and with what.
    object(cursor, true)
}

/// `{"name": …, "arguments": …}`, in any order and with more beside.
fn object(cursor: &mut Cursor<'_>, needs_arguments: bool) -> Result<Head, Short> {
    cursor.expect("{")?;
    let mut name: Option<String> = None;
    let mut arguments: Option<Range<usize>> = None;
    loop {
        cursor.skip_space();
        let key = cursor.string()?;
        cursor.skip_space();
        cursor.expect(":")?;
        cursor.skip_space();
        match key.as_ref() {
            "name" => name = Some(cursor.string()?.into_owned()),
            "arguments" | "parameters" => {
                let start = cursor.at;
                if cursor.peek()? != b'{' {
                    return Err(Short::Broken);
                }
                if let Some(name) = name {
                    return Ok(Head { name, arguments: Arguments::From(start) });
                }
                cursor.skip_value()?;
                arguments = Some(start..cursor.at);
            }
            _ => cursor.skip_value()?,
        }
        if let (Some(name), Some(range)) = (&name, &arguments) {
            let arguments = Arguments::Within { range: range.clone(), next: cursor.at };
            return Ok(Head { name: name.clone(), arguments });
        }
        cursor.skip_space();
        if !cursor.take(",")? {
            break;
        }
    }
    cursor.expect("}")?;
    match name {
        Some(name) if !needs_arguments => Ok(Head { name, arguments: Arguments::None { next: cursor.at } }),
        _ => Err(Short::Broken),
    }
}

/// The text before a mark, which is passed too.
fn until<'a>(cursor: &mut Cursor<'a>, mark: &str) -> Result<&'a str, Short> {
    let rest = cursor.rest();
    match rest.find(mark) {
        Some(length) if length <= NAME_BYTES_MAX => {
            cursor.at += length + mark.len();
            Ok(&rest[..length])
        }
        None if rest.len() < NAME_BYTES_MAX + mark.len() => Err(Short::More),
        _ => Err(Short::Broken),
    }
}

/// The largest boundary of characters that is not above `at`.
fn floor_boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0)
}
