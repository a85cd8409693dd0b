//! Logits that are on a device: of most rows the largest few suffice to draw from, and come alone. What they do not
//! decide comes whole, as it does from a device in the host's memory; the tokens are the same.

use std::collections::BTreeMap;
use std::ops::Range;

use lingqu_backend::{Backend, BackendError, View};
use lingqu_sampler::Top;
use lingqu_scheduler::StepPlan;
use lingqu_types::RequestId;

use crate::request::Active;

/// A step's logits there and here.
pub(crate) struct FarLogits<'a> {
    /// `[logit_rows, vocab]`
    pub far: View<'a>,
    /// `[logit_rows_max, vocab]`: filled where whole rows are needed.
    pub near: &'a mut [f32],
}

/// Draws what can be drawn from the largest logits, and brings the rows of all others.
pub(crate) fn draw_far(
    backend: &dyn Backend,
    plan: &StepPlan,
    requests: &mut BTreeMap<RequestId, Active>,
    logits: FarLogits<'_>,
) -> Result<(), BackendError> {
    let FarLogits { far, near } = logits;
    let vocab = far.width();
    let mut scales = vec![1.0; far.rows()];
    let (mut wanted, mut at) = (0, 0);
    for slice in &plan.slices {
        let request = &requests[&slice.id];
        if let Some(k) = request.top_wanted(slice) {
            wanted = wanted.max(k);
            scales[at] = request.top_scale();
        }
        at += slice.logit_rows;
    }
    let k = wanted.min(vocab);
    let top = if k > 0 { Some(backend.top_logits(far, &scales, k)?) } else { None };
    let mut at = 0;
    let mut whole: Range<usize> = 0..0; // neighbours that are needed whole come together
    for slice in &plan.slices {
        let rows = at..at + slice.logit_rows;
        at = rows.end;
        let request = requests.get_mut(&slice.id).expect("the scheduler knows only live requests");
        if let Some(top) = top.as_ref().filter(|_| request.top_wanted(slice).is_some()) {
            let listed = rows.start * k..rows.end * k;
            let (tokens, logits) = (&top.tokens[listed.clone()], &top.values[listed]);
            if request.draw_top(Top { tokens, logits, vocab, weight_sum: top.sums[rows.start] }) {
                continue;
            }
        }
        if rows.start != whole.end {
            bring(backend, far, whole, near)?;
            whole = rows.start..rows.start;
        }
        whole.end = rows.end;
    }
    bring(backend, far, whole, near)
}

/// Copies rows to their places.
fn bring(backend: &dyn Backend, far: View<'_>, rows: Range<usize>, near: &mut [f32]) -> Result<(), BackendError> {
    let vocab = far.width();
    match rows.is_empty() {
        true => Ok(()),
        false => backend.read_rows(far, rows.clone(), &mut near[rows.start * vocab..rows.end * vocab]),
    }
}
