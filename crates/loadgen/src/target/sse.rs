//! Server-sent events: the payloads of `data:` lines, from bytes that may be cut anywhere.
//!
//! The format is that of the HTML standard, section 9.2: lines end with CR, LF or both; an empty line ends an event;
//! the data of several lines are joined by LF; other fields and comments are of no interest here.

/// Bytes of one event, at most.
const EVENT_BYTES_MAX: usize = 1 << 20;

#[derive(Debug, Default)]
pub struct EventParser {
    /// The line that has not ended.
    line: Vec<u8>,
    /// Data of the event that has not ended.
    data: Option<Vec<u8>>,
    /// The last byte was CR: an LF that follows belongs to it.
    after_cr: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub enum EventError {
    TooLong,
    NotText,
}

impl EventParser {
    /// Takes bytes, and gives the data of the events that they complete.
    ///
    /// # Errors
    /// When an event is longer than a MiB, or is not UTF-8.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<String>, EventError> {
        let mut events = Vec::new();
        for &byte in bytes {
            let is_second_half = byte == b'\n' && self.after_cr;
            self.after_cr = byte == b'\r';
            match byte {
                _ if is_second_half => {}
                b'\r' | b'\n' => self.end_line(&mut events)?,
                _ => self.line.push(byte),
            }
            if self.line.len() + self.data.as_ref().map_or(0, Vec::len) > EVENT_BYTES_MAX {
                return Err(EventError::TooLong);
            }
        }
        Ok(events)
    }

    fn end_line(&mut self, events: &mut Vec<String>) -> Result<(), EventError> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            if let Some(data) = self.data.take() {
                events.push(String::from_utf8(data).map_err(|_| EventError::NotText)?);
            }
        } else if let Some(value) = line.strip_prefix(b"data:") {
            let value = value.strip_prefix(b" ").unwrap_or(value);
            match &mut self.data {
                Some(data) => {
                    data.push(b'\n');
                    data.extend_from_slice(value);
                }
                None => self.data = Some(value.to_vec()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(stream: &str, expected: &[&str]) {
        let bytes = stream.as_bytes();
        for cut in 0..=bytes.len() {
            for second in cut..=bytes.len() {
                let mut parser = EventParser::default();
                let mut events = parser.push(&bytes[..cut]).unwrap();
                events.extend(parser.push(&bytes[cut..second]).unwrap());
                events.extend(parser.push(&bytes[second..]).unwrap());
                assert_eq!(events, expected, "{stream:?} cut at {cut} and {second}");
            }
        }
    }

    #[test]
    fn events_come_out_whole_wherever_they_are_cut() {
        check("data: {\"a\":1}\n\ndata: [DONE]\n\n", &["{\"a\":1}", "[DONE]"]);
        check("data: 政务\r\n\r\ndata:热线\r\r", &["政务", "热线"]);
        check(": ping\n\nevent: x\nid: 3\ndata: a\ndata: b\n\n", &["a\nb"]);
        check("data:  two spaces\n\n\n\ndata\n\n", &[" two spaces"]);
        check("data: unfinished\n", &[]);
        check("data:\n\n", &[""]);
    }

    #[test]
    fn what_is_no_event_is_an_error() {
        let endless = vec![b'x'; EVENT_BYTES_MAX + 1];
        assert_eq!(EventParser::default().push(&endless), Err(EventError::TooLong));
        assert_eq!(EventParser::default().push(b"data: \xff\n\n"), Err(EventError::NotText));
    }
}
