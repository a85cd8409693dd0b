//! What is generated, and how it arrives.

use lingqu_engine::TokenEvent;
use lingqu_proto::v1;
use lingqu_proto::v1::FinishReason;
use lingqu_proto::v1::generate_request::Input;
use lingqu_testkit::toy::ToyFaults;
use lingqu_types::{GenerateRequest, SamplingParams, StopConditions, TokenOutput};

use crate::server::{Options, TestServer, chat, greedy, prompt, token_ids};
use crate::toy;

async fn toy() -> TestServer {
    TestServer::toy(Options::default(), ToyFaults::default()).await.0
}

fn seeded(mut request: v1::GenerateRequest, seed: u64) -> v1::GenerateRequest {
    request.sampling.get_or_insert_default().seed = Some(seed);
    request
}

/// What must be the same however a request was sent.
fn without_id(mut reply: v1::GenerateReply) -> v1::GenerateReply {
    reply.finished.as_mut().expect("an end").request_id.clear();
    reply
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_equal_unary_replies_and_the_engine() {
    let server = toy().await;
    for seed in 0..8 {
        let request = v1::GenerateRequest {
            logprobs: Some(3),
            prompt_logprobs: Some(2),
            ignore_eos: true,
            ..seeded(prompt("hello 你好"), seed)
        };
        let (streamed, events) = server.streamed(request.clone()).await.expect("a reply");
        assert!(events > 10, "one event for each token or so, not {events}");
        let once = server.once(request).await.expect("a reply");
        assert_eq!(without_id(streamed), without_id(once.clone()));

        let direct = GenerateRequest {
            sampling: SamplingParams { seed: Some(seed), ..Options::default().default_sampling },
            stop: StopConditions { max_tokens: Some(12), ignore_eos: true, ..StopConditions::default() },
            logprobs: Some(3),
            prompt_logprobs: Some(2),
            ..GenerateRequest::new(toy::ids("<bos>hello 你好"))
        };
        let mut tokens: Vec<TokenOutput> = Vec::new();
        let mut stream = server.engine.handle().submit(direct).expect("room");
        while let Some(event) = stream.recv().await {
            match event {
                TokenEvent::Token(token) => tokens.push(token),
                TokenEvent::Prompt(_) | TokenEvent::Finished(_) => {}
                TokenEvent::Failed(error) => panic!("{error}"),
            }
        }
        assert_eq!(once.token_ids, tokens.iter().map(|t| t.token).collect::<Vec<_>>());
        for (wire, token) in once.logprobs.iter().zip(&tokens) {
            assert_eq!((wire.token_id, wire.logprob), (token.token, token.logprob));
            assert_eq!(wire.top.iter().map(|t| (t.token_id, t.logprob)).collect::<Vec<_>>(), token.top);
        }
        assert_eq!(once.text, toy::tokenizer(true).decode(&once.token_ids, true));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reported_seed_replays_the_reply() {
    let server = toy().await;
    let request = v1::GenerateRequest { ignore_eos: true, ..prompt("replay") };
    let first = server.once(request.clone()).await.expect("a reply");
    let sampling = first.finished.clone().expect("an end").sampling.expect("sampling");
    // Everything that was in effect is told, so nothing depends on this server's defaults any more.
    assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k), (Some(0.6), Some(0.95), Some(0)));
    assert!(sampling.seed.is_some());
    let replay = v1::GenerateRequest { sampling: Some(sampling), ..request.clone() };
    assert_eq!(without_id(server.once(replay).await.expect("a reply")), without_id(first.clone()));
    let mut others = Vec::new();
    for _ in 0..4 {
        others.push(server.once(request.clone()).await.expect("a reply").token_ids);
    }
    assert!(others.iter().any(|tokens| *tokens != first.token_ids), "seeds of the server's choice differ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inputs_mean_the_same_tokens() {
    let server = toy().await;
    let reply = async |input: Input| {
        let request = v1::GenerateRequest { input: Some(input), ignore_eos: true, ..seeded(prompt(""), 3) };
        let reply = server.once(request).await.expect("a reply");
        (reply.token_ids, reply.finished.expect("an end").usage.expect("usage").prompt_tokens)
    };
    let text = reply(Input::Prompt("ab".into())).await;
    let ids = reply(token_ids(&toy::ids("<bos>ab")).expect("ids")).await;
    assert_eq!(text, ids);
    assert_eq!(text.1, 3);
    let talk = reply(Input::Chat(chat(&[("user", "ab"), ("assistant", "c"), ("user", "d")]))).await;
    let written = reply(token_ids(&toy::ids("<bos><user>ab<assistant>c<user>d<assistant>")).expect("ids")).await;
    assert_eq!(talk, written);
    let continued = v1::Chat { add_generation_prompt: Some(false), ..chat(&[("user", "ab")]) };
    let written = reply(token_ids(&toy::ids("<bos><user>ab")).expect("ids")).await;
    assert_eq!(reply(Input::Chat(continued)).await, written);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn special_tokens_of_a_prompt_are_read_or_not() {
    let server = toy().await;
    let tokens = async |add: Option<bool>, parse: Option<bool>| {
        let request = v1::GenerateRequest {
            add_special_tokens: add,
            parse_special_tokens: parse,
            prompt_logprobs: Some(0),
            max_tokens: Some(0),
            ..prompt("a<user>")
        };
        let scores = server.once(request).await.expect("a reply").prompt_logprobs.expect("scores");
        scores.tokens.iter().map(|t| t.text.clone()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(tokens(None, None).await, "<bos> a <user>");
    assert_eq!(tokens(Some(false), Some(true)).await, "a <user>");
    assert_eq!(tokens(Some(false), Some(false)).await, "a < u s e r >");
}

/// A script that the model recites, what is asked of it, and what must arrive.
struct Row {
    script: &'static str,
    edit: fn(&mut v1::GenerateRequest),
    reasoning: &'static str,
    text: &'static str,
    reason: FinishReason,
}

fn thinking_rows() -> Vec<Row> {
    let plain = |_: &mut v1::GenerateRequest| ();
    vec![
        // Each tag comes in as many tokens as it has bytes, each Chinese character in three.
        Row {
            script: "x<think>hm 你</think>yes 好.",
            edit: plain,
            reasoning: "hm 你",
            text: "yes 好.",
            reason: FinishReason::Stop,
        },
        Row { script: "x<think>hm</thin", edit: plain, reasoning: "hm</thin", text: "", reason: FinishReason::Stop },
        Row { script: "xno <think>", edit: plain, reasoning: "", text: "no <think>", reason: FinishReason::Stop },
        Row {
            script: "x<think>hm</think>yes",
            edit: |r| r.split_reasoning = Some(false),
            reasoning: "",
            text: "<think>hm</think>yes",
            reason: FinishReason::Stop,
        },
        Row {
            script: "x<think>hm</think>one two three",
            edit: |r| r.stop = vec!["four".into(), " th".into()],
            reasoning: "hm",
            text: "one two",
            reason: FinishReason::Stop,
        },
        Row {
            script: "x你好你好",
            edit: |r| r.stop = vec!["好".into()],
            reasoning: "",
            text: "你",
            reason: FinishReason::Stop,
        },
        Row {
            script: "xabcd",
            edit: |r| r.max_tokens = Some(2),
            reasoning: "",
            text: "ab",
            reason: FinishReason::Length,
        },
        Row {
            script: "xabcd",
            edit: |r| r.stop_token_ids = toy::ids("c"),
            reasoning: "",
            text: "ab",
            reason: FinishReason::Stop,
        },
        Row {
            script: "xab<eos>cd<user>e",
            edit: |r| (r.ignore_eos, r.max_tokens) = (true, Some(7)),
            reasoning: "",
            text: "abcde",
            reason: FinishReason::Length,
        },
        Row {
            script: "xab<user>c",
            edit: |r| r.skip_special_tokens = Some(false),
            reasoning: "",
            text: "ab<user>c",
            reason: FinishReason::Stop,
        },
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thinking_and_text_come_apart_and_whole() {
    for Row { script, edit, reasoning, text, reason } in thinking_rows() {
        let server = TestServer::reciting(&format!("<bos>{script}")).await;
        let mut request = greedy("x");
        edit(&mut request);
        let (reply, _) = server.streamed(request).await.expect("a reply");
        assert_eq!((reply.reasoning.as_str(), reply.text.as_str()), (reasoning, text), "{script}");
        let end = reply.finished.expect("an end");
        assert_eq!(end.reason(), reason, "{script}");
        let usage = end.usage.expect("usage");
        assert_eq!(usage.prompt_tokens, 2);
        assert_eq!(usage.reasoning_tokens > 0, !reasoning.is_empty(), "{script}: {usage:?}");
        server.until_idle().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_that_opens_the_thinking_is_continued_in_it() {
    let server = TestServer::reciting("<bos><user>q<assistant><think>deep</think>yes").await;
    let opened = "<user>q<assistant><think>";
    let as_ids = toy::ids("<bos><user>q<assistant><think>");
    for input in [Some(Input::Prompt(opened.into())), token_ids(&as_ids)] {
        let reply = server.once(v1::GenerateRequest { input, ..greedy("") }).await.expect("a reply");
        assert_eq!((reply.reasoning.as_str(), reply.text.as_str()), ("deep", "yes"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prompt_logprobs_have_a_row_for_each_token() {
    let server = TestServer::reciting("<bos>abcd").await;
    let request = v1::GenerateRequest { prompt_logprobs: Some(2), max_tokens: Some(0), ..greedy("abc") };
    let reply = server.once(request).await.expect("a reply");
    assert!(reply.token_ids.is_empty());
    let end = reply.finished.expect("an end");
    assert_eq!((end.reason(), end.usage.expect("usage").completion_tokens), (FinishReason::Length, 0));
    let scores = reply.prompt_logprobs.expect("scores");
    assert_eq!(scores.tokens.iter().map(|t| t.text.as_str()).collect::<Vec<_>>(), ["<bos>", "a", "b", "c"]);
    let (first, others) = scores.tokens.split_first().expect("rows");
    assert_eq!((first.logprob, first.top.len()), (None, 0));
    for token in others {
        // Recited, so certain; and its own alternatives stand beside it, not its successor's.
        assert!(token.logprob.expect("a value") > -1e-6);
        assert_eq!((token.top.len(), token.top[0].token_id), (2, token.token_id));
    }
    assert_eq!((scores.next_top.len(), scores.next_top[0].text.as_str()), (2, "d"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_prompt_logprobs_come_in_parts() {
    // 3,000 rows of 1 + 5 entries: more than one event's worth.
    let limits = lingqu_types::Limits { top_logprobs_max: 5, ..lingqu_types::Limits::for_context(4000, 2) };
    let (server, _) = TestServer::toy(Options { limits, ..Options::default() }, ToyFaults::default()).await;
    let prompt: Vec<u32> = (0..3000).map(|i| i % 60).collect();
    let request = v1::GenerateRequest {
        input: token_ids(&prompt),
        prompt_logprobs: Some(5),
        max_tokens: Some(0),
        ..Default::default()
    };
    let (reply, events) = server.streamed(request).await.expect("a reply");
    let scores = reply.prompt_logprobs.expect("scores");
    assert_eq!(scores.tokens.iter().map(|t| t.token_id).collect::<Vec<_>>(), prompt);
    assert_eq!(scores.next_top.len(), 5);
    assert_eq!(events, 3000_usize.div_ceil(4096 / 6) + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logprobs_are_there_only_if_asked_for() {
    let server = toy().await;
    let check = async |logprobs: Option<u32>, rows: usize, top: usize| {
        let request = v1::GenerateRequest { logprobs, ignore_eos: true, ..prompt("a") };
        let reply = server.once(request).await.expect("a reply");
        assert_eq!((reply.token_ids.len(), reply.logprobs.len()), (12, rows));
        assert!(reply.logprobs.iter().all(|row| row.top.len() == top && row.logprob.is_some()));
        assert_eq!(reply.prompt_logprobs, None);
    };
    check(None, 0, 0).await;
    check(Some(0), 12, 0).await;
    check(Some(5), 12, 5).await;
}
