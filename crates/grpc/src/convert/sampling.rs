//! Sampling parameters: the request's fields over the model's defaults, and back.

use lingqu_proto::v1;
use lingqu_types::SamplingParams;

/// The sampling of a request.
pub fn sampling(wire: Option<v1::Sampling>, defaults: &SamplingParams) -> SamplingParams {
    let Some(wire) = wire else { return defaults.clone() };
    SamplingParams {
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
    }
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
            assert_eq!(sampling(wire, &r1()), expected);
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
        assert_eq!(sampling(Some(sampling_on_wire(&params)), &SamplingParams::default()), params);
    }
}
