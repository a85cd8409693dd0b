//! Rotary position embedding (Su et al. 2021): tables of cosines and sines, with the scalings of our models.

use std::f64::consts::TAU;

use lingqu_tensor::HostTensor;

use crate::config::{RopeConfig, RopeScaling};

/// `[positions, dim]`: for each position the cosines of its `dim / 2` angles, then their sines, in f32 of f64 values.
/// `divisors` `[dim / 2]` divide the frequencies (`rope_freqs.weight`).
pub(crate) fn table(config: &RopeConfig, divisors: Option<&[f32]>, positions: usize) -> HostTensor {
    let mut frequencies = frequencies(config);
    for (frequency, &divisor) in frequencies.iter_mut().zip(divisors.unwrap_or_default()) {
        *frequency /= f64::from(divisor);
    }
    let factor = match config.scaling {
        RopeScaling::Yarn { attention_factor, .. } => attention_factor,
        _ => 1.0,
    };
    let mut values = Vec::with_capacity(positions * config.dim);
    for position in 0..positions {
        let angle = |frequency: &f64| position as f64 * frequency;
        values.extend(frequencies.iter().map(|f| (angle(f).cos() * factor) as f32));
        values.extend(frequencies.iter().map(|f| (angle(f).sin() * factor) as f32));
    }
    HostTensor::from_f32("rope table", [positions, config.dim], &values)
}

/// Radians a position for each pair. `[dim / 2]`
pub(crate) fn frequencies(config: &RopeConfig) -> Vec<f64> {
    let dim = config.dim as f64;
    let plain = (0..config.dim / 2).map(|i| config.theta.powf(-2.0 * i as f64 / dim));
    match config.scaling {
        RopeScaling::None => plain.collect(),
        RopeScaling::Linear { factor } => plain.map(|f| f / factor).collect(),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => plain
            .map(|f| {
                // How far between the long waves (0: divided) and the short ones (1: kept).
                let waves = original_context * f / TAU;
                let kept = ((waves - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                f * kept + f / factor * (1.0 - kept)
            })
            .collect(),
        RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, .. } => {
            let ramp = yarn_ramp(config, original_context, beta_fast, beta_slow);
            plain.zip(ramp).map(|(f, divided)| f * (1.0 - divided) + f / factor * divided).collect()
        }
    }
}

/// How much of each frequency is divided: 0 for pairs that turn more than `beta_fast` times in the original context,
/// 1 for those that turn less than `beta_slow` times (DeepSeek-V3's `inference/model.py`, `precompute_freqs_cis`).
fn yarn_ramp(config: &RopeConfig, original_context: f64, beta_fast: f64, beta_slow: f64) -> Vec<f64> {
    let dim = config.dim as f64;
    // The pair, as a real number, that turns so many times.
    let pair = |turns: f64| dim * (original_context / (turns * TAU)).ln() / (2.0 * config.theta.ln());
    let low = pair(beta_fast).floor().max(0.0);
    let high = pair(beta_slow).ceil().min(dim - 1.0);
    let width = if high == low { 0.001 } else { high - low };
    (0..config.dim / 2).map(|i| ((i as f64 - low) / width).clamp(0.0, 1.0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lingqu_backend::RopePairing;

    fn config(theta: f64, dim: usize, scaling: RopeScaling) -> RopeConfig {
        RopeConfig { theta, dim, pairing: RopePairing::Half, scaling }
    }

    /// `expected`: (pair, radians a position) as transformers 4.57.6 gives them in f32.
    fn check(config: &RopeConfig, expected: &[(usize, f64)]) {
        let frequencies = frequencies(config);
        assert_eq!(frequencies.len(), config.dim / 2);
        for &(pair, value) in expected {
            let found = frequencies[pair];
            assert!((found / value - 1.0).abs() < 2e-5, "pair {pair}: {found} instead of {value}");
        }
    }

    #[test]
    fn llama_3_1_8b() {
        let scaling =
            RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192.0 };
        let expected = [
            (0, 1.0),
            (1, 0.8146172165870667),
            (28, 0.0032114461064338684),
            (29, 0.0021665706299245358),
            (31, 0.0008567514596506953),
            (34, 0.0001785077911335975),
            (35, 9.556212171446532e-05),
            (63, 3.068925877869333e-07),
        ];
        check(&config(500_000.0, 128, scaling), &expected);
    }

    #[test]
    fn deepseek_v3() {
        let scaling = RopeScaling::Yarn {
            factor: 40.0,
            original_context: 4096.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: 1.0,
        };
        let expected = [
            (0, 1.0),
            (10, 0.05623412877321243),
            (11, 0.039006926119327545),
            (15, 0.0083345090970397),
            (20, 0.0007905694073997438),
            (22, 0.00017782794020604342),
            (23, 3.333803397254087e-05),
            (31, 3.3338035336782923e-06),
        ];
        check(&config(10_000.0, 64, scaling), &expected);
    }

    #[test]
    fn tables_hold_cosines_then_sines() {
        let scaling = RopeScaling::Yarn {
            factor: 1.0,
            original_context: 64.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: 2.0,
        };
        let values = table(&config(100.0, 4, scaling), Some(&[1.0, 2.0]), 3).to_f32();
        let angles = [2.0f64, 2.0 * 0.1 / 2.0]; // position 2
        let expected = [angles[0].cos(), angles[1].cos(), angles[0].sin(), angles[1].sin()];
        assert_eq!(values[..4], [2.0, 2.0, 0.0, 0.0]);
        assert_eq!(values[8..], expected.map(|v| (2.0 * v) as f32));
    }
}
