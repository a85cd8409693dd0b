//! Just enough of a Rust lexer to count: code with the insides of strings, characters and comments blanked.

/// The source with comments, string and character contents replaced by spaces; line structure is kept.
pub fn blank(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut out = bytes.to_vec();
    let mut i = 0;
    while i < bytes.len() {
        let end = match bytes[i] {
            b'/' if bytes.get(i + 1) == Some(&b'/') => line_end(bytes, i),
            b'/' if bytes.get(i + 1) == Some(&b'*') => block_comment_end(bytes, i),
            b'"' => string_end(bytes, i + 1),
            b'r' if is_word_start(bytes, i) => match raw_string_end(bytes, i + 1) {
                Some(end) => end,
                None => i,
            },
            b'\'' => char_end(bytes, i),
            _ => i,
        };
        for byte in &mut out[i..end.min(bytes.len())] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        i = end.max(i + 1);
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn is_word_start(bytes: &[u8], i: usize) -> bool {
    i == 0 || !(bytes[i - 1].is_ascii_alphanumeric() && bytes[i - 1] != b'b' || bytes[i - 1] == b'_')
}

fn line_end(bytes: &[u8], i: usize) -> usize {
    bytes[i..].iter().position(|&b| b == b'\n').map_or(bytes.len(), |n| i + n)
}

fn block_comment_end(bytes: &[u8], start: usize) -> usize {
    let mut depth = 0;
    let mut i = start;
    while i + 1 < bytes.len() {
        match &bytes[i..i + 2] {
            b"/*" => (depth, i) = (depth + 1, i + 2),
            b"*/" => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            return i;
        }
    }
    bytes.len()
}

fn string_end(bytes: &[u8], mut i: usize) -> usize {
    while i < bytes.len() {
        match bytes[i] {
            b'\\' => i += 2,
            b'"' => return i + 1,
            _ => i += 1,
        }
    }
    bytes.len()
}

/// End of `r#"..."#` whose `r` stands just before `i`.
fn raw_string_end(bytes: &[u8], i: usize) -> Option<usize> {
    let hashes = bytes[i..].iter().take_while(|&&b| b == b'#').count();
    if bytes.get(i + hashes) != Some(&b'"') {
        return None;
    }
    let closing: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    let body = i + hashes + 1;
    let found = bytes[body..].windows(closing.len()).position(|w| w == closing);
    Some(found.map_or(bytes.len(), |n| body + n + closing.len()))
}

/// End of a character literal at `i`, or `i` for a lifetime.
fn char_end(bytes: &[u8], i: usize) -> usize {
    if bytes.get(i + 1) == Some(&b'\\') {
        return bytes[i + 3..].iter().position(|&b| b == b'\'').map_or(i, |n| i + 3 + n + 1);
    }
    // One character of up to four bytes, then the closing quote.
    (2..=5)
        .find(|&n| bytes.get(i + n) == Some(&b'\''))
        .filter(|&n| is_one_char(&bytes[i + 1..i + n]))
        .map_or(i, |n| i + n + 1)
}

fn is_one_char(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(|s| s.chars().count() == 1)
}

/// A function's name, first line (0-based) and number of lines, signature included.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    pub name: String,
    pub line: usize,
    pub lines: usize,
}

/// Functions with a body, in blanked code.
pub fn functions(code: &str) -> Vec<Function> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        let before = code[..at].chars().next_back();
        let name: String = code[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if name.is_empty() || before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let Some(body) = code[at..].find(['{', ';']).filter(|&n| code.as_bytes()[at + n] == b'{') else { continue };
        let mut depth = 0usize;
        let end = code[at + body..].char_indices().find_map(|(n, c)| {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            (depth == 0).then_some(at + body + n)
        });
        let line = code[..at].matches('\n').count();
        let lines = code[at..end.unwrap_or(code.len())].matches('\n').count() + 1;
        found.push(Function { name, line, lines });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_comments_and_chars_are_blanked() {
        let check = |source: &str, code: &str| assert_eq!(blank(source), code, "{source}");
        check("a /* { /* } */ */ b", "a                 b");
        check("x = \"{\\\"}\"; y", "x =       ; y");
        check("c = '{'; d: &'a str", "c =    ; d: &'a str");
        check("r#\"{\"# + br\"}\" // }", "       + b         ");
        check("'\\n' '\\u{1F600}' '字'", &" ".repeat(22));
    }

    #[test]
    fn functions_are_measured() {
        let code = blank("fn a() {\n  let s = \"}\";\n}\nimpl T { fn b(&self)\n-> u8 { 1 } fn c(); }");
        let expected =
            [("a", 0, 3), ("b", 3, 2)].map(|(name, line, lines)| Function { name: name.into(), line, lines });
        assert_eq!(functions(&code), expected);
    }
}
