use proptest::prelude::*;

use super::*;
use crate::ChatTemplate;

const V3: ToolFormat = ToolFormat::DeepSeekV3;
const V31: ToolFormat = ToolFormat::DeepSeekV31;
const HERMES: ToolFormat = ToolFormat::Hermes;
const LLAMA: ToolFormat = ToolFormat::Llama3;

/// Text and calls (name, arguments) of a reply that comes in these pieces.
type Told = (String, Vec<(String, String)>);

fn run<'a>(format: ToolFormat, pieces: impl IntoIterator<Item = &'a str>) -> Told {
    let mut parser = ToolCallParser::new(format, 7);
    let mut outs: Vec<ToolText> = pieces.into_iter().map(|piece| parser.push(piece)).collect();
    outs.push(parser.finish());
    let mut told = Told::default();
    for out in outs {
        told.0 += &out.text;
        for delta in out.calls {
            if let Some(name) = delta.name {
                assert_eq!(delta.index as usize, told.1.len(), "calls come in order");
                assert!(delta.id.is_some(), "with an id");
                told.1.push((name, String::new()));
            }
            assert_eq!(delta.index as usize + 1, told.1.len(), "the latest call goes on");
            told.1.last_mut().expect("a call").1 += &delta.arguments;
        }
    }
    assert_eq!(parser.calls() as usize, told.1.len());
    told
}

struct Sample {
    format: ToolFormat,
    reply: &'static str,
    text: &'static str,
    calls: &'static [(&'static str, &'static str)],
}

const fn sample(
    format: ToolFormat,
    reply: &'static str,
    text: &'static str,
    calls: &'static [(&'static str, &'static str)],
) -> Sample {
    Sample { format, reply, text, calls }
}

/// Replies in the form of each family's template, then ones that go wrong.
const SAMPLES: &[Sample] = &[
    sample(
        V3,
        "先查天气。\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n\
         {\"city\": \"北京 }\\\"\"}\n```<｜tool▁call▁end｜>\n\
         <｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "先查天气。",
        &[("get_weather", "{\"city\": \"北京 }\\\"\"}"), ("now", "{}")],
    ),
    sample(
        V31,
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{\"city\": [{}]}<｜tool▁call▁end｜>\
         <｜tool▁call▁begin｜>now<｜tool▁sep｜><｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "",
        &[("get_weather", "{\"city\": [{}]}"), ("now", "{}")],
    ),
    // Each of DeepSeek's parsers reads the other's calls, and a call without the mark of all calls.
    sample(
        V31,
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"a\": 1}\n```<｜tool▁call▁end｜>",
        "",
        &[("f", "{\"a\": 1}")],
    ),
    sample(
        HERMES,
        "Let me see.\n\
         <tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"</tool_call>\"}}\n</tool_call>\n\
         <tool_call>\n{\"arguments\": {\"x\": 1}, \"name\": \"f\"}\n</tool_call>",
        "Let me see.",
        &[("get_weather", "{\"city\": \"</tool_call>\"}"), ("f", "{\"x\": 1}")],
    ),
    sample(HERMES, "<tool_call>{\"name\": \"now\"}</tool_call> Done.", "Done.", &[("now", "{}")]),
    sample(
        HERMES,
        "<tool_call>{\"name\": \"f\", \"arguments\": {}, \"id\": {\"a\": 1}}</tool_call>",
        "",
        &[("f", "{}")],
    ),
    // Escapes in a name are undone; arguments are left as they are.
    sample(
        HERMES,
        "<tool_call>{\"name\": \"a\\u0062\", \"arguments\": {\"\\u0061\": \"\\\\\"}}</tool_call>",
        "",
        &[("ab", "{\"\\u0061\": \"\\\\\"}")],
    ),
    sample(
        LLAMA,
        "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\"}}; {\"name\": \"f\", \"parameters\": {}}",
        "",
        &[("get_weather", "{\"city\": \"Paris\"}"), ("f", "{}")],
    ),
    sample(
        LLAMA,
        "<|python_tag|>{\"type\": \"function\", \"name\": \"f\", \"parameters\": {\"a\": 1}}",
        "",
        &[("f", "{\"a\": 1}")],
    ),
    // No calls at all.
    sample(HERMES, "a < b <tool b, <<tool_call", "a < b <tool b, <<tool_call", &[]),
    sample(LLAMA, "{\"title\": \"no call\", \"name\": \"x\"}", "{\"title\": \"no call\", \"name\": \"x\"}", &[]),
    sample(LLAMA, " \n{\"a\": 1} and more", " \n{\"a\": 1} and more", &[]),
    sample(LLAMA, "<|python_tag|>print(1)", "<|python_tag|>print(1)", &[]),
    sample(
        LLAMA,
        "As JSON: {\"name\": \"f\", \"parameters\": {}}",
        "As JSON: {\"name\": \"f\", \"parameters\": {}}",
        &[],
    ),
    sample(V3, "<｜tool▁sep｜> 一 <｜tool▁calls▁end｜>", "<｜tool▁sep｜> 一 <｜tool▁calls▁end｜>", &[]),
    // Heads that go wrong are text, and a call may follow.
    sample(
        HERMES,
        "x <tool_call>nonsense</tool_call> <tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>",
        "x <tool_call>nonsense</tool_call>",
        &[("f", "{}")],
    ),
    sample(
        HERMES,
        "<tool_call> <tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>",
        "<tool_call>",
        &[("f", "{}")],
    ),
    sample(HERMES, "<tool_call>{\"name\": 3}</tool_call>", "<tool_call>{\"name\": 3}</tool_call>", &[]),
    sample(HERMES, "<tool_call>{\"name\": \"\"}</tool_call>", "<tool_call>{\"name\": \"\"}</tool_call>", &[]),
    sample(
        HERMES,
        "<tool_call>{\"name\": \"f\", \"arguments\": \"{}\"}</tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": \"{}\"}</tool_call>",
        &[],
    ),
    sample(V3, "<｜tool▁calls▁begin｜>oops", "<｜tool▁calls▁begin｜>oops", &[]),
    sample(
        V31,
        "<｜tool▁call▁begin｜>f<｜tool▁sep｜>nothing of the kind",
        "<｜tool▁call▁begin｜>f<｜tool▁sep｜>nothing of the kind",
        &[],
    ),
    // Broken arguments are the client's to judge.
    sample(
        HERMES,
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": ]}}</tool_call>!",
        "!",
        &[("f", "{\"a\": ]}}")],
    ),
    sample(V31, "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{'a'}<｜tool▁call▁end｜>", "", &[("f", "{'a'}")]),
    sample(LLAMA, "{\"name\": \"f\", \"parameters\": {<b>}} x", "", &[("f", "{<b>}} x")]),
    // Cut off by max_tokens.
    sample(HERMES, "<tool_call>\n{\"name\": \"get", "<tool_call>\n{\"name\": \"get", &[]),
    sample(HERMES, "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"b", "", &[("f", "{\"a\": \"b")]),
    sample(HERMES, "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool", "", &[("f", "{}")]),
    sample(V3, "Hm.\n<｜tool▁calls▁be", "Hm.\n<｜tool▁calls▁be", &[]),
    // Closing marks that are missing or doubled, and text behind.
    sample(HERMES, "<tool_call>{\"name\": \"f\", \"arguments\": {}}\nDone, ok?", "Done, ok?", &[("f", "{}")]),
    sample(HERMES, "<tool_call>{\"name\": \"f\", \"arguments\": {}\nDone}", "Done}", &[("f", "{}")]),
    sample(
        HERMES,
        "<tool_call>{\"name\": \"f\", \"arguments\": {}}<tool_call>{\"name\": \"g\", \"arguments\": {}}",
        "",
        &[("f", "{}"), ("g", "{}")],
    ),
];

#[test]
fn samples_are_told_apart() {
    for sample in SAMPLES {
        let calls = sample.calls.iter().map(|&(name, arguments)| (name.to_owned(), arguments.to_owned()));
        let told = (sample.text.to_owned(), calls.collect());
        assert_eq!(run(sample.format, [sample.reply]), told, "{:?}", sample.reply);
    }
}

#[test]
fn every_cut_in_two_gives_the_same() {
    for &Sample { format, reply, .. } in SAMPLES {
        let whole = run(format, [reply]);
        let boundaries: Vec<usize> = (0..=reply.len()).filter(|&at| reply.is_char_boundary(at)).collect();
        for &at in &boundaries {
            assert_eq!(run(format, [&reply[..at], &reply[at..]]), whole, "{reply:?} cut at {at}");
        }
        assert_eq!(run(format, boundaries.windows(2).map(|w| &reply[w[0]..w[1]])), whole, "{reply:?} by characters");
    }
}

#[test]
fn arguments_come_as_they_are_written() {
    let mut parser = ToolCallParser::new(HERMES, 1);
    let mut push = |piece: &str| parser.push(piece).calls.into_iter().map(|c| c.arguments).collect::<String>();
    assert_eq!(push("<tool_call>{\"name\": \"f\", \"arguments\": {\"ci"), "{\"ci");
    assert_eq!(push("ty\": \"Par"), "ty\": \"Par");
    assert_eq!(push("is\"}"), "is\"}");
    assert_eq!(push("}</tool_call>"), "");
}

#[test]
fn ids_differ_by_seed_and_index() {
    let ids = |seed: u64| -> Vec<String> {
        let call = "<tool_call>{\"name\": \"f\"}</tool_call>";
        let out = ToolCallParser::new(HERMES, seed).push(&call.repeat(3));
        out.calls.into_iter().map(|c| c.id.expect("an id")).collect()
    };
    assert_eq!(ids(5), ids(5));
    let all: std::collections::HashSet<String> = ids(5).into_iter().chain(ids(6)).collect();
    assert_eq!(all.len(), 6);
    assert!(all.iter().all(|id| id.len() == 21 && id.starts_with("call_")));
}

/// No text is held back beyond the bound that the parser names.
#[test]
fn hostile_text_is_let_through() {
    let check = |format: ToolFormat, piece: &str| {
        let mut parser = ToolCallParser::new(format, 0);
        let (mut given, mut taken) = (0, 0);
        for _ in 0..40_000 / piece.len() {
            let out = parser.push(piece);
            given += piece.len();
            taken += out.text.len() + out.calls.iter().map(|c| c.arguments.len()).sum::<usize>();
            assert!(given - taken <= (8 << 10) + 128, "{format:?} {piece:?}: {} bytes held", given - taken);
        }
    };
    for format in ToolFormat::ALL {
        for piece in
            [" ", "<", "\n\n<", "<tool_call>", "｜", "<｜tool▁call", "<｜tool▁call▁begin｜>", "{\"name\":", "a"]
        {
            check(format, piece);
        }
    }
}

/// Heads without an end, each in one long reply: bounded work, and nothing lost.
#[test]
fn endless_heads_are_text() {
    let check = |format: ToolFormat, head: &str, fill: &str| {
        let reply = format!("{head}{}", fill.repeat(30_000 / fill.len()));
        let (text, calls) = run(format, [reply.as_str()]);
        assert_eq!((text.len(), calls.len()), (reply.len(), 0), "{head:?}");
        let ends: Vec<usize> = (0..=reply.len()).step_by(97).filter(|&at| reply.is_char_boundary(at)).collect();
        let pieces = ends.windows(2).map(|w| &reply[w[0]..w[1]]).chain([&reply[*ends.last().expect("0")..]]);
        assert_eq!(run(format, pieces), (text, calls), "{head:?}");
    };
    check(HERMES, "<tool_call>{\"name\": \"", "x");
    check(HERMES, "<tool_call>{\"arguments\": {\"a\": \"", "x");
    check(HERMES, "<tool_call>{\"arguments\": ", "[");
    check(V3, "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>", "函");
    check(V3, "<｜tool▁call▁begin｜>function<｜tool▁sep｜>", "x");
    check(LLAMA, "{\"x\": \"", "y");
    check(LLAMA, "{\"x\": ", "\n\u{3000}a");
}

#[test]
fn templates_name_their_format() {
    let check = |source: &str, format: Option<ToolFormat>| {
        let template = ChatTemplate::new(source).expect("a template");
        assert_eq!(ToolFormat::for_chat(&template), format, "{source}");
    };
    check("{{ messages }}", None);
    check("{# <｜tool▁calls▁begin｜> ```json #}", Some(V3));
    check("{# <｜tool▁calls▁begin｜> #}", Some(V31));
    check("{# <tool_call> </tool_call> #}", Some(HERMES));
    check("{# <tool_call><function=f></tool_call> #}", None);
    check("{# <|start_header_id|> {\"name\": , \"parameters\": } #}", Some(LLAMA));
    check("{# <|start_header_id|> #}", None);
    for format in ToolFormat::ALL {
        assert_eq!(ToolFormat::from_name(format.name()), Some(format));
    }
    assert_eq!(ToolFormat::from_name("xml"), None);
}

/// Words that make up calls, whole and in part.
const WORDS: &[&str] = &[
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁calls▁end｜>",
    "function",
    "```json",
    "```",
    "<tool_call>",
    "</tool_call>",
    "<|python_tag|>",
    "<",
    "<｜tool▁",
    "</tool",
    "\n",
    "  ",
    "{",
    "}",
    "\"name\"",
    ": ",
    ", ",
    "\"f\"",
    "\"arguments\"",
    "\"parameters\"",
    "[",
    "]",
    "\"",
    "\\",
    "1",
    "好",
    ";",
    "{\"name\": \"f\", \"arguments\": {",
    "{\"name\": \"f\", \"parameters\": {\"a\": \"b\"}}",
    "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{",
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{",
];

proptest! {
    #[test]
    fn any_cutting_of_samples_gives_the_same(
        sample in 0..SAMPLES.len(),
        cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..12),
    ) {
        let Sample { format, reply, .. } = SAMPLES[sample];
        prop_assert_eq!(run(format, pieces(reply, &cuts)), run(format, [reply]));
    }

    #[test]
    fn any_cutting_of_hostile_text_gives_the_same(
        words in proptest::collection::vec(proptest::sample::select(WORDS), 0..24),
        format in proptest::sample::select(&ToolFormat::ALL[..]),
        cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..12),
    ) {
        let reply = words.concat();
        prop_assert_eq!(run(format, pieces(&reply, &cuts)), run(format, [reply.as_str()]));
    }
}

fn pieces<'a>(reply: &'a str, cuts: &[proptest::sample::Index]) -> Vec<&'a str> {
    let boundaries: Vec<usize> = (0..=reply.len()).filter(|&at| reply.is_char_boundary(at)).collect();
    let mut ends: Vec<usize> = cuts.iter().map(|cut| boundaries[cut.index(boundaries.len())]).collect();
    ends.extend([0, reply.len()]);
    ends.sort_unstable();
    ends.windows(2).map(|w| &reply[w[0]..w[1]]).collect()
}
