//! How many rows experts got lately.

use crate::Model;

/// Pairs of a layer after which its counts are halved: so old load is forgotten by and by, without a clock.
const WINDOW_PAIRS: u64 = 1 << 20;
/// Pairs for each expert of a layer before its counts say something.
const PAIRS_TO_TELL: u64 = 32;

/// Rows by layer and expert.
pub(crate) struct ExpertLoad(Vec<LayerLoad>);

struct LayerLoad {
    /// Empty where the layer has no experts.
    rows: Vec<u64>,
    pairs: u64,
}

impl ExpertLoad {
    pub fn new(model: &Model) -> Self {
        let of = |bytes: &u64| LayerLoad { rows: vec![0; if *bytes > 0 { model.experts } else { 0 }], pairs: 0 };
        Self(model.expert_bytes.iter().map(of).collect())
    }

    /// Each of `experts` gets a row.
    pub fn count(&mut self, layer: usize, experts: &[u32]) {
        let Some(layer) = self.0.get_mut(layer) else { return };
        for &expert in experts {
            if let Some(rows) = layer.rows.get_mut(expert as usize) {
                *rows += 1;
            }
        }
        layer.pairs += experts.len() as u64;
        if layer.pairs >= WINDOW_PAIRS {
            layer.pairs /= 2;
            layer.rows.iter_mut().for_each(|rows| *rows /= 2);
        }
    }

    pub fn rows(&self) -> Vec<Vec<u64>> {
        self.0.iter().map(|layer| layer.rows.clone()).collect()
    }

    /// Whether there was enough to go by.
    pub fn tells(&self) -> bool {
        self.0.iter().all(|layer| layer.pairs >= PAIRS_TO_TELL * layer.rows.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_rows_count_less() {
        let expert_bytes = vec![0, 7];
        let model = Model { fingerprint: [0; 32], rows_max: 1, hidden: 1, experts: 2, top_k: 1, expert_bytes };
        let mut load = ExpertLoad::new(&model);
        load.count(1, &[0, 1, 1, 9]);
        load.count(7, &[0]);
        assert_eq!(load.rows(), [vec![], vec![1, 2]]);
        assert!(!load.tells());
        let many = vec![0; WINDOW_PAIRS as usize - 4];
        load.count(1, &many);
        assert_eq!(load.rows(), [vec![], vec![(WINDOW_PAIRS - 3) / 2, 1]]);
        assert!(load.tells());
    }
}
