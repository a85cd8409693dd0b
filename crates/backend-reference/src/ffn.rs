//! The gated feed-forward layer, alone and as a routed expert.

use candle_core::{Device, Result as CandleResult, Tensor};
use lingqu_backend::{ExpertWeights, FfnSource, HostRouting, Result};

use crate::dots;
use crate::upload::{bytes, matrix};

pub struct Ffn {
    /// gate and up `[intermediate, hidden]`, down `[hidden, intermediate]`
    matrices: [Tensor; 3],
}

impl Ffn {
    pub fn hidden(&self) -> usize {
        self.matrices[2].dims()[0]
    }

    pub fn intermediate(&self) -> usize {
        self.matrices[2].dims()[1]
    }

    pub fn bytes(&self) -> usize {
        bytes(&self.matrices)
    }

    /// gate, up, down
    pub fn matrices(&self) -> &[Tensor; 3] {
        &self.matrices
    }

    /// `down(silu(gate(x)) * up(x))`. x, result `[rows, hidden]`
    pub fn apply(&self, x: &Tensor) -> CandleResult<Tensor> {
        let [gate, up, down] = &self.matrices;
        let gated = (dots(x, gate)?.silu()? * dots(x, up)?)?; // [rows, intermediate]
        dots(&gated, down)
    }
}

pub fn upload(source: &FfnSource) -> Result<Ffn> {
    let FfnSource { gate, up, down } = source;
    assert_eq!((up.rows, up.cols), (gate.rows, gate.cols), "shape of '{}' beside '{}'", up.name, gate.name);
    assert_eq!((down.cols, down.rows), (gate.rows, gate.cols), "shape of '{}' after '{}'", down.name, gate.name);
    Ok(Ffn { matrices: [matrix(gate)?, matrix(up)?, matrix(down)?] })
}

pub fn upload_experts(experts: &[FfnSource]) -> Result<ExpertWeights> {
    assert!(!experts.is_empty(), "no experts");
    let experts = experts.iter().map(upload).collect::<Result<Vec<_>>>()?;
    let (hidden, intermediate) = (experts[0].hidden(), experts[0].intermediate());
    let alike = |e: &Ffn| (e.hidden(), e.intermediate()) == (hidden, intermediate);
    assert!(experts.iter().all(alike), "experts of several shapes");
    let held = experts.iter().map(Ffn::bytes).sum();
    Ok(ExpertWeights::new([experts.len(), hidden, intermediate], held, experts))
}

/// The output of each slot's expert for its row. x `[rows, hidden]`, result `[rows, top_k, hidden]`
pub fn by_expert(x: &Tensor, routing: &HostRouting, experts: &[Ffn]) -> CandleResult<Tensor> {
    let (rows, hidden) = x.dims2()?;
    let top_k = routing.top_k;
    let mut out = vec![0.0; rows * top_k * hidden];
    if let Some(e) = routing.experts.iter().find(|e| **e as usize >= experts.len()) {
        panic!("experts: expert {e} of {}", experts.len());
    }
    for (e, expert) in experts.iter().enumerate() {
        let slots: Vec<usize> = (0..rows * top_k).filter(|slot| routing.experts[*slot] as usize == e).collect();
        if slots.is_empty() {
            continue;
        }
        let rows: Vec<u32> = slots.iter().map(|slot| (slot / top_k) as u32).collect();
        let y = expert.apply(&x.index_select(&Tensor::new(rows, &Device::Cpu)?, 0)?)?; // [slots, hidden]
        for (slot, y) in slots.into_iter().zip(y.to_vec2::<f32>()?) {
            out[slot * hidden..][..hidden].copy_from_slice(&y);
        }
    }
    Tensor::from_vec(out, (rows, top_k, hidden), &Device::Cpu)
}
