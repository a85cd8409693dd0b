//! How the next token is drawn from the logits.

use crate::ids::TokenId;

/// Sampling parameters of one request. [`Default`] is plain sampling at temperature 1 with every filter off.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 picks the likeliest token. Finite, 0..=100.
    pub temperature: f32,
    /// Keep the smallest set of tokens whose probability reaches this. (0, 1]; 1 keeps all.
    pub top_p: f32,
    /// Keep this many likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Drop tokens less likely than this share of the likeliest one. [0, 1); 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or output (CTRL paper). > 0; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once from the logit of every token already generated. [-2, 2]; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted per occurrence from the logit of every token already generated. [-2, 2]; 0 is off.
    pub frequency_penalty: f32,
    /// Added to the logits of single tokens. Each bias in [-100, 100].
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Seed of the draw. The token at output index `i` depends on the logits, the seed and `i` alone,
    /// so that a reply can be replayed. `None`: the engine picks one and reports it.
    pub seed: Option<u64>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
        }
    }
}

/// A parameter outside its range: the field's name as clients know it, and what is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidParam {
    pub field: &'static str,
    pub problem: String,
}

impl std::fmt::Display for InvalidParam {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.problem)
    }
}

impl std::error::Error for InvalidParam {}

impl SamplingParams {
    /// Checks every range written on the fields.
    pub fn validate(&self) -> Result<(), InvalidParam> {
        let within = |field, value: f32, ok: bool, range: &str| match ok && value.is_finite() {
            true => Ok(()),
            false => Err(InvalidParam { field, problem: format!("{value} is not in {range}") }),
        };
        let t = self.temperature;
        within("temperature", t, (0.0..=100.0).contains(&t), "0..=100")?;
        within("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "(0, 1]")?;
        within("min_p", self.min_p, (0.0..1.0).contains(&self.min_p), "[0, 1)")?;
        let r = self.repetition_penalty;
        within("repetition_penalty", r, r > 0.0 && r <= 100.0, "(0, 100]")?;
        for (field, v) in [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)] {
            within(field, v, (-2.0..=2.0).contains(&v), "[-2, 2]")?;
        }
        for &(_, bias) in &self.logit_bias {
            within("logit_bias", bias, (-100.0..=100.0).contains(&bias), "[-100, 100]")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_checked_by_field() {
        let check = |field: &str, edit: fn(&mut SamplingParams)| {
            let mut p = SamplingParams::default();
            assert_eq!(p.validate(), Ok(()));
            edit(&mut p);
            assert_eq!(p.validate().expect_err(field).field, field);
        };
        check("temperature", |p| p.temperature = -0.1);
        check("temperature", |p| p.temperature = f32::NAN);
        check("top_p", |p| p.top_p = 0.0);
        check("top_p", |p| p.top_p = 1.1);
        check("min_p", |p| p.min_p = 1.0);
        check("repetition_penalty", |p| p.repetition_penalty = 0.0);
        check("presence_penalty", |p| p.presence_penalty = 2.5);
        check("frequency_penalty", |p| p.frequency_penalty = f32::INFINITY);
        check("logit_bias", |p| p.logit_bias = vec![(3, 101.0)]);
    }
}
