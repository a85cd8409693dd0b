use lingqu_testkit::rng::Rng;
use lingqu_tokenizer::{ChatTemplate, GgufVocabulary};
use lingqu_types::FinishReason::{Length, Stop};
use lingqu_types::{Limits, RequestId, TokenId};

use super::*;
use crate::mailbox::Mailbox;
use crate::stream::{EventSender, StreamStart, channel};

/// Tokens by id; `ä½` and `ł` are the three bytes of 你, cut in two.
const TOKENS: [&str; 24] = [
    "a",
    "b",
    "c",
    "<",
    "think",
    ">",
    "</",
    "ä½",
    "ł",
    "Ċ",
    "<think>",
    "</think>",
    "S",
    "<eos>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    "<tool_call>",
    "</tool_call>",
    "{\"name\":\"",
    "\",\"arguments\":",
    "{\"",
    "\":1}",
    "}",
];
const NEWLINE: TokenId = 9;
const EOS: TokenId = 13;
const CONTROL: i32 = 3;
/// The end, and DeepSeek's marks.
const IS_CONTROL: std::ops::RangeInclusive<TokenId> = 13..=16;

fn tokenizer() -> Arc<Tokenizer> {
    let vocabulary = GgufVocabulary {
        model: "gpt2".into(),
        pre: Some("qwen2".into()),
        tokens: TOKENS.iter().map(|t| t.to_string()).collect(),
        token_types: (0..TOKENS.len() as TokenId)
            .map(|id| if IS_CONTROL.contains(&id) { CONTROL } else { 1 })
            .collect(),
        eos_id: Some(EOS),
        ..GgufVocabulary::default()
    };
    Arc::new(Tokenizer::from_gguf(vocabulary).expect("a vocabulary"))
}

fn ids(names: &str) -> Vec<TokenId> {
    let id = |name: &str| TOKENS.iter().position(|t| *t == name).expect("a token") as TokenId;
    names
        .split(' ')
        .filter(|name| !name.is_empty())
        .map(|name| if name == "\\n" { NEWLINE } else { id(name) })
        .collect()
}

fn options(stops: &[&str], thinks: bool) -> TextOptions {
    let template = ChatTemplate::new("{# </think> #}").expect("a template");
    let reasoning = match thinks {
        true => ReasoningMode::Split(ReasoningSplitter::for_chat(&template, "hello")),
        false => ReasoningMode::Off,
    };
    TextOptions { stop_strings: stops.iter().map(|s| s.to_string()).collect(), reasoning, ..TextOptions::default() }
}

/// A stream whose engine is this test.
fn stream(options: TextOptions, room: usize) -> (EventSender, TextStream, Arc<Mailbox>) {
    let mailbox = Arc::new(Mailbox::new(&Limits::for_context(8, 1)));
    let start = StreamStart { id: RequestId(5), prompt_tokens: 3, seed: 77, drafts_max: 0 };
    let (sender, tokens) = channel(start, room, mailbox.clone());
    (sender, TextStream::new(tokens, tokenizer(), options).expect("valid stops"), mailbox)
}

#[derive(Debug, Default, PartialEq)]
struct Told {
    text: String,
    reasoning: String,
    /// Names and arguments.
    calls: Vec<(String, String)>,
    tokens: Vec<TokenId>,
    finished: Option<Finished>,
}

fn read(mut stream: TextStream) -> Told {
    let mut told = Told::default();
    while let Some(event) = stream.blocking_next() {
        assert!(told.finished.is_none(), "an event after the end");
        match event {
            TextEvent::Delta { text, reasoning, tool_calls, tokens } => {
                assert!(told.text.is_empty() || reasoning.is_empty(), "thinking after the answer");
                told.text += &text;
                told.reasoning += &reasoning;
                told.tokens.extend(tokens.iter().map(|t| t.token));
                for delta in tool_calls {
                    told.calls.extend(delta.name.map(|name| (name, String::new())));
                    told.calls[delta.index as usize].1 += &delta.arguments;
                }
            }
            TextEvent::Finished(finished) => {
                assert_eq!(stream.tool_calls() as usize, told.calls.len());
                told.finished = Some(finished);
            }
            other => panic!("{other:?}"),
        }
    }
    told
}

/// Sends tokens as an engine does that ends for want of room.
fn say(sender: &EventSender, tokens: &[TokenId]) {
    for &token in tokens {
        sender.send(TokenEvent::Token(TokenOutput { token, logprob: None, top: Vec::new() }));
    }
    let usage = Usage { prompt_tokens: 3, completion_tokens: tokens.len() as u32, ..Usage::default() };
    sender.send(TokenEvent::Finished(Finished { reason: FinishReason::Length, usage, seed: 77 }));
}

struct Row<'a> {
    tokens: &'a str,
    stops: &'a [&'a str],
    thinks: bool,
    text: &'a str,
    reasoning: &'a str,
    /// Completion tokens, and of them those of the thinking.
    counted: (u32, u32),
    reason: FinishReason,
}

fn check(row: &Row<'_>) {
    let (sender, stream, _) = stream(options(row.stops, row.thinks), 64);
    let tokens = ids(row.tokens);
    say(&sender, &tokens);
    let (completion_tokens, reasoning_tokens) = row.counted;
    let usage = Usage { prompt_tokens: 3, completion_tokens, reasoning_tokens, ..Usage::default() };
    let want = Told {
        text: row.text.into(),
        reasoning: row.reasoning.into(),
        calls: Vec::new(),
        tokens: tokens[..completion_tokens as usize].to_vec(),
        finished: Some(Finished { reason: row.reason, usage, seed: 77 }),
    };
    assert_eq!(read(stream), want, "{:?} {:?}", row.tokens, row.stops);
}

#[test]
fn tokens_become_text() {
    let plain = |tokens: &str, stops: &[&str], text: &str, count: u32, reason: FinishReason| {
        check(&Row { tokens, stops, thinks: false, text, reasoning: "", counted: (count, 0), reason });
    };
    plain("", &[], "", 0, Length);
    plain("a b c", &[], "abc", 3, Length);
    // Half a character waits for the other half; one that never comes is told at the end.
    plain("a ä½ ł", &[], "a你", 3, Length);
    plain("a ä½", &[], "a\u{fffd}", 2, Length);
    // Special tokens count but do not show; tags are text where nobody thinks.
    plain("a <eos> b", &[], "ab", 3, Length);
    plain("<think> a", &[], "<think>a", 2, Length);
    // Stop strings cut the text; what comes later counts for nothing.
    plain("a b S c", &["bS"], "a", 3, Stop);
    plain("a b c", &["bS"], "abc", 3, Length);
    plain("a b", &["bS"], "ab", 2, Length);
    plain("a ä½", &["\u{fffd}"], "a", 2, Stop);
}

#[test]
fn thinking_becomes_reasoning() {
    let thinking = |tokens: &str, stops: &[&str], parts: (&str, &str), counted: (u32, u32), reason: FinishReason| {
        check(&Row { tokens, stops, thinks: true, reasoning: parts.0, text: parts.1, counted, reason });
    };
    thinking("", &[], ("", ""), (0, 0), Length);
    thinking("a b", &[], ("", "ab"), (2, 0), Length);
    // Tags of one token, and of several.
    thinking("<think> \\n a b </think> \\n \\n c", &[], ("ab", "c"), (8, 5), Length);
    thinking("< think > a </ think > c", &[], ("a", "c"), (8, 5), Length);
    // A stop string in the thinking stops too.
    thinking("<think> a S b </think> c", &["S"], ("a", ""), (3, 3), Stop);
    thinking("<think> a S", &["Sb"], ("aS", ""), (3, 3), Length);
    // None lies across the end of the thinking, whose tag and line ends are no text.
    let across = ["bS", "\n\n", "</think>"];
    thinking("<think> a b </think> \\n \\n S c", &across, ("ab", "Sc"), (8, 4), Length);
    thinking("<think> a b </think> \\n \\n S c", &["Sc"], ("ab", ""), (8, 4), Stop);
}

#[test]
fn calls_are_told_apart() {
    let check = |format: ToolFormat, stops: &[&str], tokens: &str, text: &str, calls: &[(&str, &str)]| {
        let (sender, stream, _) = stream(TextOptions { tools: Some(format), ..options(stops, true) }, 64);
        say(&sender, &ids(tokens));
        let told = read(stream);
        let calls: Vec<_> = calls.iter().map(|&(name, arguments)| (name.to_owned(), arguments.to_owned())).collect();
        assert_eq!((told.text.as_str(), told.calls), (text, calls), "{tokens}");
        let reason = if stops.is_empty() { Length } else { Stop };
        assert_eq!(told.finished.expect("an end").reason, reason);
    };
    let call = "<tool_call> {\"name\":\" a \",\"arguments\": {\" b \":1} } </tool_call>";
    let (hermes, deepseek) = (ToolFormat::Hermes, ToolFormat::DeepSeekV31);
    check(hermes, &[], &format!("b \\n {call} \\n {call}"), "b", &[("a", "{\"b\":1}"), ("a", "{\"b\":1}")]);
    // None is made while the model thinks.
    check(hermes, &[], &format!("<think> {call} </think> c"), "c", &[]);
    // The marks are special tokens that skipping leaves out of text; without them there would be no call.
    let call = "<｜tool▁call▁begin｜> a <｜tool▁sep｜> {\" b \":1} <｜tool▁call▁end｜>";
    check(deepseek, &[], &format!("<eos> c {call} {call}"), "c", &[("a", "{\"b\":1}"), ("a", "{\"b\":1}")]);
    // A stop string within a call ends it there.
    check(deepseek, &["1}"], call, "", &[("a", "{\"b\":")]);
    check(deepseek, &["sep"], call, "<｜tool▁call▁begin｜>a<｜tool▁", &[]);
}

#[test]
fn a_stop_string_aborts_the_request() {
    let (sender, mut stream, mailbox) = stream(options(&["S"], false), 64);
    say(&sender, &ids("a S"));
    assert!(matches!(stream.blocking_next(), Some(TextEvent::Delta { .. })));
    assert!(mailbox.take(Default::default(), false, None).expect("no stop").aborted.is_empty());
    let last = stream.blocking_next().expect("the token of the stop string");
    assert!(matches!(&last, TextEvent::Delta { text, tokens, .. } if text.is_empty() && tokens.len() == 1), "{last:?}");
    assert_eq!(mailbox.take(Default::default(), false, None).expect("no stop").aborted, [RequestId(5)]);
    assert!(matches!(stream.blocking_next(), Some(TextEvent::Finished(f)) if f.reason == FinishReason::Stop));
    assert!(stream.blocking_next().is_none());
}

#[test]
fn text_comes_as_soon_as_it_is_certain() {
    let (sender, mut stream, _) = stream(options(&["bS"], false), 64);
    say(&sender, &ids("a b c"));
    for want in ["a", "", "bc"] {
        let event = stream.blocking_next().expect("a token");
        assert!(
            matches!(&event, TextEvent::Delta { text, tokens, .. } if text == want && tokens.len() == 1),
            "{event:?}"
        );
    }
}

#[test]
fn an_engine_that_vanishes_is_an_answer_too() {
    let (sender, mut stream, _) = stream(options(&[], false), 4);
    drop(sender);
    assert!(matches!(stream.blocking_next(), Some(TextEvent::Failed(EngineError::Stopped))));
    assert!(stream.blocking_next().is_none());
}

#[test]
fn what_is_refused_is_refused_before() {
    assert_eq!(options(&["a", ""], false).validate(), Err(StopError::Empty { index: 1 }));
    assert_eq!(options(&["a"], false).validate(), Ok(()));
}

/// A reader that pauses and catches up at random never misses the wake-up, and hears everything in order.
#[test]
fn pauses_and_wake_ups_meet() {
    for seed in 0..200 {
        let (sender, stream, mailbox) = stream(options(&[], false), 3);
        let tokens: Vec<TokenId> = (0..60).map(|i| i % 3).collect();
        let told = std::thread::scope(|scope| {
            let reader = scope.spawn(|| read(stream));
            let mut rng = Rng::new(seed);
            for &token in &tokens {
                sender.send(TokenEvent::Token(TokenOutput { token, logprob: None, top: Vec::new() }));
                while sender.pause() {
                    mailbox.take(Default::default(), true, None).expect("no stop");
                }
                if rng.chance(20) {
                    std::thread::yield_now();
                }
            }
            say(&sender, &[]);
            reader.join().expect("no panic")
        });
        assert_eq!(told.tokens, tokens);
    }
}
