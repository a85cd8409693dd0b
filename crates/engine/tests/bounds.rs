//! Clients that are slow, gone, or ask for too much; and the end of the engine.

mod support;

use std::time::{Duration, Instant};

use lingqu_engine::{EngineError, SubmitError, TokenEvent};
use lingqu_testkit::toy::{TOY_VOCAB, ToyFaults};
use lingqu_types::{FinishReason, GenerateRequest, Limits, TokenId};
use support::{assert_same, collect, eventually, plainly, request, start, tight, wide};

#[test]
fn a_slow_reader_is_paused_and_others_go_on() {
    let limits = tight();
    let (_engine, handle, control) = start(&limits, ToyFaults::default());
    let slow = request(&[1, 2, 3], 60);
    let stream = handle.submit(slow.clone()).expect("taken");
    eventually("the pause", || handle.load().paused == 1);
    let other = request(&[4, 5], 50);
    assert_same(&collect(handle.submit(other.clone()).expect("taken")), &plainly(&other, &limits), "the other one");
    // Nothing is left to do: the loop sleeps, and no step is run for the paused one.
    eventually("only the paused one is left", || handle.load().paused == 1 && handle.load().running == 1);
    let steps = control.steps();
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(control.steps(), steps);
    assert_same(&collect(stream), &plainly(&slow, &limits), "the slow one");
    assert!(control.steps() > steps + 30, "it was far ahead of its reader");
}

#[test]
fn readers_that_never_read_do_not_keep_others_out() {
    let limits = tight();
    let (_engine, handle, _) = start(&limits, ToyFaults::default());
    let stuck: Vec<_> = (0..limits.sequences_max as TokenId * 2).map(|i| request(&[i, i], 100)).collect();
    let streams: Vec<_> = stuck.iter().map(|r| handle.submit(r.clone()).expect("taken")).collect();
    let prompt: Vec<TokenId> = (0..150).map(|i| i % 60).collect();
    let other = request(&prompt, 50);
    assert_same(&collect(handle.submit(other.clone()).expect("taken")), &plainly(&other, &limits), "the reader");
    for (request, stream) in stuck.iter().zip(streams) {
        assert_same(&collect(stream), &plainly(request, &limits), "woken up at last");
    }
}

#[test]
fn a_dropped_stream_frees_its_blocks() {
    let (_engine, handle, _) = start(&wide(), ToyFaults::default());
    let mut running = handle.submit(request(&[1; 50], 140)).expect("taken");
    assert!(matches!(running.blocking_recv(), Some(TokenEvent::Token(_))));
    let unread = handle.submit(request(&[2; 50], 140)).expect("taken");
    eventually("two running", || handle.load().running == 2);
    drop(running);
    drop(unread);
    eventually("all blocks free", || handle.load().kv_blocks_used == 0 && handle.load().running == 0);
    assert_eq!(collect(handle.submit(request(&[3], 2)).expect("taken")).tokens.len(), 2);
}

#[test]
fn a_full_queue_says_so() {
    let limits = Limits { sequences_max: 1, queue_requests_max: 3, ..wide() };
    let (_engine, handle, control) = start(&limits, ToyFaults::default());
    control.hold();
    let mut streams = vec![handle.submit(request(&[1], 4)).expect("taken")];
    eventually("the first one runs", || handle.load().running == 1);
    streams.extend((0..3).map(|_| handle.submit(request(&[1], 4)).expect("taken")));
    assert_eq!(handle.load().waiting, 3);
    let refused = handle.submit(request(&[1], 4)).err().expect("the queue is full");
    assert!(matches!(refused, SubmitError::QueueFull { queue_requests_max: 3 }), "{refused}");
    control.release();
    for stream in streams {
        assert_eq!(collect(stream).tokens.len(), 4);
    }
}

#[test]
fn what_cannot_be_served_is_refused_by_field() {
    let (_engine, handle, _) = start(&wide(), ToyFaults::default());
    let check = |says: &str, edit: fn(&mut GenerateRequest)| {
        let mut r = request(&[1, 2], 3);
        edit(&mut r);
        let error = handle.submit(r).err().expect(says).to_string();
        assert!(error.starts_with(says), "{error}");
    };
    check("prompt: holds no token", |r| r.prompt.clear());
    check("token_ids: 61 is not below", |r| r.prompt.push(TOY_VOCAB as TokenId));
    check("temperature: -1", |r| r.sampling.temperature = -1.0);
    check("logprobs: 65 is above 64", |r| r.logprobs = Some(65));
    check("prompt_logprobs: 65 is above 64", |r| r.prompt_logprobs = Some(65));
    check("adapter: 'gamma\\n' is not loaded", |r| r.adapter = Some("gamma\n".into()));
    check("prompt: 201 tokens leave no room", |r| r.prompt = vec![1; 201]);
    check("prompt: 200 tokens leave no room", |r| r.prompt = vec![1; 200]);
    check("prompt: 201 tokens leave no room", |r| {
        r.prompt = vec![1; 201];
        r.stop.max_tokens = Some(0);
    });
}

#[test]
fn a_whole_context_may_be_scored() {
    let (_engine, handle, _) = start(&wide(), ToyFaults::default());
    let whole = GenerateRequest { prompt_logprobs: Some(1), ..request(&[1; 200], 0) };
    assert_same(&collect(handle.submit(whole.clone()).expect("taken")), &plainly(&whole, &wide()), "all of it");
}

#[test]
fn draining_finishes_what_was_taken() {
    let limits = Limits { sequences_max: 2, ..wide() };
    let (engine, handle, control) = start(&limits, ToyFaults::default());
    control.hold();
    let requests: Vec<_> = (0..6).map(|i| request(&[i, 1], 8)).collect();
    let streams: Vec<_> = requests.iter().map(|r| handle.submit(r.clone()).expect("taken")).collect();
    let report = std::thread::scope(|scope| {
        let drain = scope.spawn(|| engine.drain(Duration::from_secs(20)));
        eventually("a refusal", || matches!(handle.submit(request(&[1], 0)), Err(SubmitError::Draining)));
        control.release();
        drain.join().expect("no panic")
    });
    assert_eq!((report.cut_off, report.stopped), (0, true));
    for (request, stream) in requests.iter().zip(streams) {
        assert_same(&collect(stream), &plainly(request, &limits), "drained");
    }
}

#[test]
fn draining_is_bounded_and_tells_whom_it_cut_off() {
    let (engine, handle, _) = start(&tight(), ToyFaults::default());
    let never_read = handle.submit(request(&[1], 100)).expect("taken");
    let report = engine.drain(Duration::from_millis(50));
    assert_eq!((report.cut_off, report.stopped), (1, true));
    let reply = collect(never_read);
    assert!(matches!(reply.failed, Some(EngineError::Stopped)), "{:?}", reply.failed);
    assert!(reply.tokens.len() >= tight().unread_tokens_max, "what was ready is still told");
}

#[test]
fn a_dropped_engine_answers_everybody() {
    let (engine, handle, _) = start(&tight(), ToyFaults::default());
    let streams: Vec<_> = (0..20).map(|i| handle.submit(request(&[i], 100)).expect("taken")).collect();
    drop(engine);
    for stream in streams {
        let reply = collect(stream);
        assert!(matches!(reply.failed, Some(EngineError::Stopped)), "{:?}", reply.failed);
    }
    assert!(matches!(handle.submit(request(&[1], 1)), Err(SubmitError::Draining)));
}

#[tokio::test]
async fn async_readers_and_finish_reasons() {
    let (_engine, handle, _) = start(&wide(), ToyFaults::default());
    let mut stream = handle.submit(request(&[1, 2], 3)).expect("taken");
    let mut tokens = 0;
    let finished = loop {
        match stream.recv().await.expect("an end comes first") {
            TokenEvent::Token(_) => tokens += 1,
            TokenEvent::Finished(finished) => break finished,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((tokens, finished.reason, finished.usage.completion_tokens), (3, FinishReason::Length, 3));
    assert!(stream.recv().await.is_none());
}

#[test]
fn a_tenant_that_floods_the_queue_is_refused_alone() {
    let limits = Limits { sequences_max: 1, queue_requests_per_tenant_max: 2, ..wide() };
    let (_engine, handle, control) = start(&limits, ToyFaults::default());
    let of = |tenant: &str| {
        let mut request = request(&[1], 4);
        request.service.tenant = tenant.into();
        handle.submit(request)
    };
    control.hold();
    let mut streams = vec![of("a").expect("taken")];
    eventually("the first one runs", || handle.load().running == 1);
    streams.extend((0..2).map(|_| of("a").expect("taken")));
    let refused = of("a").err().expect("two wait already");
    assert_eq!(refused.to_string(), "2 requests of tenant \"a\" are waiting already");
    streams.push(of("b").expect("another tenant's place"));
    control.release();
    for stream in streams {
        assert_eq!(collect(stream).tokens.len(), 4);
    }
    assert_eq!(collect(of("a").expect("its places are free again")).tokens.len(), 4);
}

#[test]
fn deadlines_end_what_waits_runs_or_is_paused() {
    let limits = Limits { sequences_max: 1, ..tight() };
    let (_engine, handle, control) = start(&limits, ToyFaults::default());
    let within = |time: Duration| {
        let mut request = request(&[1, 2], 100);
        request.service.deadline = Some(Instant::now() + time);
        handle.submit(request).expect("taken")
    };
    control.hold();
    let running = within(Duration::from_millis(20));
    let waiting = within(Duration::ZERO);
    std::thread::sleep(Duration::from_millis(30));
    control.release();
    let late = |stream| {
        let failed = collect(stream).failed;
        assert!(matches!(failed, Some(EngineError::DeadlineExceeded)), "{failed:?}");
    };
    late(running);
    late(waiting);
    // Nobody reads it, so the loop sleeps: the deadline wakes it.
    let steps = control.steps();
    let paused = within(Duration::from_millis(200));
    eventually("it runs", || control.steps() > steps);
    eventually("all blocks free", || handle.load().kv_blocks_used == 0);
    late(paused);
    let in_time = within(Duration::from_secs(600));
    assert_eq!(collect(in_time).tokens.len(), 100);
}
