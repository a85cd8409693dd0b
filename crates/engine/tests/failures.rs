//! Devices that fail, models that panic: everybody is told, and what can go on goes on.

mod support;

use lingqu_engine::{EngineError, SubmitError};
use lingqu_testkit::toy::ToyFaults;
use lingqu_types::{GenerateRequest, Limits, StopConditions, TokenId};
use support::{assert_same, collect, eventually, plainly, request, start, wide};

/// The token that breaks things. Other requests must not draw it.
const BAD: TokenId = 60;

/// A request that never computes the bad token itself.
fn good(seed: u64) -> GenerateRequest {
    let mut request = request(&[1, 2, 3], 40);
    request.sampling.seed = Some(seed);
    request.sampling.logit_bias = vec![(BAD, -100.0)];
    request
}

#[test]
fn a_failed_step_fails_its_requests_alone() {
    let limits = Limits { sequences_max: 1, ..wide() };
    let (_engine, handle, control) = start(&limits, ToyFaults { out_of_memory: Some(BAD), ..ToyFaults::default() });
    control.hold();
    let before = handle.submit(good(1)).expect("taken");
    let bad = handle.submit(request(&[1, BAD], 5)).expect("taken");
    let after = handle.submit(good(2)).expect("taken");
    control.release();
    assert_same(&collect(before), &plainly(&good(1), &limits), "the one before");
    let error = collect(bad).failed.expect("it fails");
    assert_eq!(error.to_string(), "the step failed: out of memory: a toy needs 1 bytes");
    assert_same(&collect(after), &plainly(&good(2), &limits), "the one after");
    eventually("all blocks free", || handle.load().kv_blocks_used == 0);
}

#[test]
fn logits_that_are_not_numbers_fail_one_request() {
    let (_engine, handle, control) = start(&wide(), ToyFaults { nan: Some(BAD), ..ToyFaults::default() });
    control.hold();
    let first = handle.submit(good(1)).expect("taken");
    let bad = handle.submit(request(&[1, BAD], 5)).expect("taken");
    let scored = GenerateRequest { prompt_logprobs: Some(0), ..request(&[BAD, 1], 5) };
    let scored = handle.submit(scored).expect("taken");
    control.release();
    assert_same(&collect(first), &plainly(&good(1), &wide()), "its neighbour");
    for (stream, at) in [(bad, 1), (scored, 0)] {
        let error = collect(stream).failed.expect("it fails");
        assert!(matches!(error, EngineError::Logits { position, .. } if position == at), "{error}");
    }
}

#[test]
fn the_end_of_the_engine_is_told_to_everybody() {
    let check = |faults: ToyFaults, says: &str| {
        let limits = Limits { sequences_max: 2, ..wide() };
        let (engine, handle, control) = start(&limits, faults);
        control.hold();
        let mut streams = vec![handle.submit(good(1)).expect("taken")];
        eventually("one runs", || handle.load().running == 1);
        streams.push(handle.submit(request(&[1, BAD], 5)).expect("taken"));
        streams.extend((2..6).map(|seed| handle.submit(good(seed)).expect("taken")));
        control.release();
        for stream in streams {
            let error = collect(stream).failed.expect("it fails").to_string();
            assert!(error.starts_with(says), "{error}");
        }
        let refused = handle.submit(good(1)).err().expect("the engine has ended");
        assert!(matches!(refused, SubmitError::Ended(_)), "{refused}");
        assert!(refused.to_string().starts_with(says), "{refused}");
        assert!(engine.drain(std::time::Duration::ZERO).stopped);
    };
    check(ToyFaults { panic: Some(BAD), ..ToyFaults::default() }, "the engine panicked: the toy was told to panic");
    check(ToyFaults { device_lost: Some(BAD), ..ToyFaults::default() }, "the device is lost: toy: unplugged");
}

#[test]
fn limits_that_cannot_work_do_not_start() {
    use lingqu_engine::{Engine, EngineConfig};
    use lingqu_testkit::toy::{ToyBackend, ToyModel};
    let limits = Limits { blocks: 1, ..wide() };
    let (model, _) = ToyModel::new(&limits, ToyFaults::default());
    let config = EngineConfig::new(limits, Vec::new());
    let error = Engine::start(Box::new(model), std::sync::Arc::new(ToyBackend::default()), config).err();
    assert!(error.expect("too few blocks").to_string().starts_with("engine limits: blocks: 1 is less than 7"));
    // A generation without any bound of its own ends with the context.
    let (_engine, handle, _) = start(&wide(), ToyFaults::default());
    let stop = StopConditions { max_tokens: None, ..good(1).stop };
    let unbounded = GenerateRequest { stop, ..good(1) };
    assert_same(
        &collect(handle.submit(unbounded.clone()).expect("taken")),
        &plainly(&unbounded, &wide()),
        "to the end",
    );
}

#[test]
fn weights_settle_while_nothing_is_to_do_and_while_requests_run() {
    use lingqu_engine::{Engine, EngineConfig};
    use lingqu_testkit::toy::{ToyBackend, ToyModel};
    let limits = wide();
    let backend = std::sync::Arc::new(ToyBackend::settling(15));
    let (model, control) = ToyModel::new(&limits, ToyFaults::default());
    control.hold();
    let engine = Engine::start(Box::new(model), backend.clone(), EngineConfig::new(limits.clone(), vec![])).unwrap();
    let stream = engine.handle().submit(good(1)).expect("taken");
    control.release();
    assert_same(&collect(stream), &plainly(&good(1), &limits), "an answer of 40 tokens");
    eventually("all has settled", || backend.unsettled() == 0);

    let idle = std::sync::Arc::new(ToyBackend::settling(15));
    let (model, _) = ToyModel::new(&limits, ToyFaults::default());
    let _engine = Engine::start(Box::new(model), idle.clone(), EngineConfig::new(limits, vec![])).unwrap();
    eventually("all has settled without a request", || idle.unsettled() == 0);
}

#[test]
fn broken_weights_end_the_engine_by_name() {
    use lingqu_engine::{Engine, EngineConfig};
    use lingqu_testkit::toy::{ToyBackend, ToyModel};
    let limits = wide();
    let (model, _) = ToyModel::new(&limits, ToyFaults::default());
    let backend = std::sync::Arc::new(ToyBackend::breaking(15));
    let engine = Engine::start(Box::new(model), backend, EngineConfig::new(limits, vec![])).unwrap();
    // They may be found before it comes or after its first steps, but before its last.
    let why = match engine.handle().submit(good(1)) {
        Ok(stream) => collect(stream).failed.expect("an answer that is cut off"),
        Err(SubmitError::Ended(why)) => why,
        Err(other) => panic!("{other}"),
    };
    assert!(matches!(why, EngineError::Weights(_)) && why.to_string().contains("'w': is broken"), "{why}");
}
