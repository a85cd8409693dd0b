//! Lengths like those of the Azure LLM inference traces of November 2023.
//!
//! Log-normal approximations, not the data. Medians are those that the paper about the traces gives (Patel et al.,
//! "Splitwise: Efficient Generative LLM Inference Using Phase Splitting", ISCA 2024, section III): prompts of 1020
//! tokens and outputs of 129 in conversations, 1500 and 13 in coding. Spreads follow from medians and means,
//! `sigma = sqrt(2 ln(mean / median))`. The means, 1155 and 211 tokens in conversations and about 2048 and 28 in
//! coding, are those that later papers quote for the traces; we did not compute them from the data. Real lengths
//! have humps and a cut-off, and those of prompt and output are related; here they are drawn apart, and arrivals
//! are Poisson.

use crate::random::Random;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Trace {
    /// Long prompts, middling answers.
    Conversation,
    /// Long prompts, very short answers.
    Code,
}

/// Median and sigma of a log-normal distribution of tokens.
struct Lengths {
    median: f64,
    sigma: f64,
}

impl Trace {
    fn prompt(self) -> Lengths {
        match self {
            Trace::Conversation => Lengths { median: 1020.0, sigma: 0.499 },
            Trace::Code => Lengths { median: 1500.0, sigma: 0.789 },
        }
    }

    fn output(self) -> Lengths {
        match self {
            Trace::Conversation => Lengths { median: 129.0, sigma: 0.992 },
            Trace::Code => Lengths { median: 13.0, sigma: 1.239 },
        }
    }

    /// Tokens of a prompt and of its answer, scaled, and cut so that they fit the context together.
    pub fn lengths(self, random: &mut Random, scale: f64, context_tokens: usize) -> (usize, usize) {
        let mut draw = |of: Lengths| (scale * random.log_normal(of.median, of.sigma)).round().max(1.0) as usize;
        let (prompt, output) = (draw(self.prompt()), draw(self.output()));
        let output = output.min((context_tokens / 2).max(1));
        (prompt.min(context_tokens.saturating_sub(output + 1).max(1)), output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_have_the_stated_means_and_medians() {
        let check = |trace: Trace, means: [f64; 2], medians: [usize; 2]| {
            let mut random = Random::new(3, 0);
            let mut drawn: [Vec<usize>; 2] = Default::default();
            for _ in 0..100_000 {
                let (prompt, output) = trace.lengths(&mut random, 1.0, 1 << 20);
                drawn[0].push(prompt);
                drawn[1].push(output);
            }
            for i in 0..2 {
                let mean = drawn[i].iter().sum::<usize>() as f64 / drawn[i].len() as f64;
                assert!((mean / means[i] - 1.0).abs() < 0.03, "{trace:?} {i}: mean {mean}");
                drawn[i].sort_unstable();
                let median = drawn[i][drawn[i].len() / 2];
                assert!(median.abs_diff(medians[i]) <= medians[i] / 25, "{trace:?} {i}: median {median}");
            }
        };
        check(Trace::Conversation, [1155.0, 211.0], [1020, 129]);
        check(Trace::Code, [2048.0, 28.0], [1500, 13]);
    }

    #[test]
    fn lengths_fit_the_context() {
        let mut random = Random::new(4, 0);
        for _ in 0..10_000 {
            let (prompt, output) = Trace::Code.lengths(&mut random, 1.0, 512);
            assert!(prompt >= 1 && output >= 1 && prompt + output < 512, "{prompt} + {output}");
        }
    }
}
