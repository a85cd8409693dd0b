//! Sampling parameters: the request's fields over the model's defaults, and back.

use lingqu_proto::v1;
use lingqu_types::SamplingParams;
use lingqu_types::sampling::InvalidParam;
use tonic::Status;

use crate::status::{invalid, too_many};

const LOGIT_BIASES_MAX: usize = 1024;

/// The sampling of a request.
pub fn sampling(wire: Option<v1::Sampling>, defaults: &SamplingParams) -> Result<SamplingParams, Status> {
    let Some(wire) = wire else { return Ok(defaults.clone()) };
    if wire.logit_bias.len() > LOGIT_BIASES_MAX {
        return Err(too_many("sampling.logit_bias", wire.logit_bias.len(), LOGIT_BIASES_MAX));
    }
    let params = SamplingParams {
        temperature: wire.temperature.unwrap_or(defaults.temperature),
        top_p: wire.top_p.unwrap_or(defaults.top_p),
        top_k: wire.top_k.unwrap_or(defaults.top_k),
        min_p: wire.min_p.unwrap_or(defaults.min_p),
        repetition_penalty: wire.repetition_penalty.unwrap_or(defaults.repetition_penalty),
        presence_penalty: wire.presence_penalty.unwrap_or(defaults.presence_penalty),
        frequency_penalty: wire.frequency_penalty.unwrap_or(defaults.frequency_penalty),
        logit_bias: match wire.logit_bias.is_empty() {
            true => defaults.logit_bias.clone(),
            false => wire.logit_bias.into_iter().collect(),
        },
        seed: wire.seed.or(defaults.seed),
    };
    params.validate().map_err(|e| sampling_error(&e))?;
    Ok(params)
}

/// The same on the wire, every field present.
pub fn sampling_on_wire(params: &SamplingParams) -> v1::Sampling {
    v1::Sampling {
        temperature: Some(params.temperature),
        top_p: Some(params.top_p),
        top_k: Some(params.top_k),
        min_p: Some(params.min_p),
        repetition_penalty: Some(params.repetition_penalty),
        presence_penalty: Some(params.presence_penalty),
        frequency_penalty: Some(params.frequency_penalty),
        seed: params.seed,
        logit_bias: params.logit_bias.iter().copied().collect(),
    }
}

fn sampling_error(error: &InvalidParam) -> Status {
    invalid(&format!("sampling.{}", error.field), &error.problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn r1() -> SamplingParams {
        SamplingParams { temperature: 0.6, top_p: 0.95, ..SamplingParams::default() }
    }

    #[test]
    fn requests_override_defaults() {
        let check = |wire: Option<v1::Sampling>, edit: fn(&mut SamplingParams)| {
            let mut expected = r1();
            edit(&mut expected);
            assert_eq!(sampling(wire, &r1()).expect("valid"), expected);
        };
        let none = v1::Sampling::default();
        check(None, |_| ());
        check(Some(none.clone()), |_| ());
        check(Some(v1::Sampling { temperature: Some(0.0), ..none.clone() }), |p| p.temperature = 0.0);
        check(Some(v1::Sampling { top_p: Some(1.0), ..none.clone() }), |p| p.top_p = 1.0);
        check(Some(v1::Sampling { top_k: Some(40), ..none.clone() }), |p| p.top_k = 40);
        check(Some(v1::Sampling { min_p: Some(0.1), ..none.clone() }), |p| p.min_p = 0.1);
        check(Some(v1::Sampling { repetition_penalty: Some(1.1), ..none.clone() }), |p| p.repetition_penalty = 1.1);
        check(Some(v1::Sampling { presence_penalty: Some(-1.0), ..none.clone() }), |p| p.presence_penalty = -1.0);
        check(Some(v1::Sampling { frequency_penalty: Some(0.5), ..none.clone() }), |p| p.frequency_penalty = 0.5);
        check(Some(v1::Sampling { seed: Some(0), ..none.clone() }), |p| p.seed = Some(0));
        let logit_bias = [(7, -100.0), (3, 1.5)].into_iter().collect();
        check(Some(v1::Sampling { logit_bias, ..none }), |p| p.logit_bias = vec![(3, 1.5), (7, -100.0)]);
    }

    #[test]
    fn the_wire_and_back_is_the_same() {
        let params = SamplingParams { seed: Some(9), logit_bias: vec![(1, 2.0)], top_k: 5, ..r1() };
        assert_eq!(sampling(Some(sampling_on_wire(&params)), &SamplingParams::default()).expect("valid"), params);
    }

    #[test]
    fn values_out_of_range_are_refused_by_field() {
        let check = |field: &str, edit: fn(&mut v1::Sampling)| {
            let mut wire = v1::Sampling::default();
            edit(&mut wire);
            let error = sampling(Some(wire), &r1()).expect_err(field);
            assert_eq!(error.code(), tonic::Code::InvalidArgument);
            assert!(error.message().starts_with(&format!("sampling.{field}:")), "{}", error.message());
        };
        check("temperature", |s| s.temperature = Some(-1.0));
        check("temperature", |s| s.temperature = Some(f32::NAN));
        check("top_p", |s| s.top_p = Some(0.0));
        check("min_p", |s| s.min_p = Some(1.0));
        check("repetition_penalty", |s| s.repetition_penalty = Some(0.0));
        check("presence_penalty", |s| s.presence_penalty = Some(3.0));
        check("frequency_penalty", |s| s.frequency_penalty = Some(f32::INFINITY));
        check("logit_bias", |s| s.logit_bias = [(1, 200.0)].into_iter().collect());
        check("logit_bias", |s| s.logit_bias = (0..=LOGIT_BIASES_MAX as u32).map(|id| (id, 0.0)).collect());
    }
}
