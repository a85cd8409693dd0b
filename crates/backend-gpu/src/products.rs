//! Ops with matrices: embedding, linear layers, gated feed-forward, routed experts; and the router.
//!
//! The number of rows that share a read of the weights (the end of a kernel's name) changes no bit, so it follows how
//! many there are. Whether matrix units multiply does, so that is fixed when weights are uploaded.

use lingqu_backend::{
    BackendError, ExpertWeights, FfnWeights, GroupScore, RouteSpec, Routing, Scoring, Step, View, ViewMut, Weight,
};

use crate::Result;
use crate::arguments::{Argument, GroupsArgument, RouteArgument, ViewArgument};
use crate::core::{Core, Room};
use crate::memory::{Routed, source, target};
use crate::step::StepTables;
use crate::weights::{Arithmetic, EXPERTS_MAX, Gated, Linear, Matrices, Table};

/// Groups of experts that the router can hold.
const GROUPS_MAX: usize = 64;

/// How a product is cut into blocks: a variant of its kernel. Variants of one arithmetic give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    /// The end of the kernel's name.
    variant: &'static str,
    /// Rows that share a read of the weights.
    rows: usize,
    /// Outputs of a block: of one matrix, and of gate and up together.
    outputs: usize,
    gated_outputs: usize,
}

impl Cut {
    const fn plain(variant: &'static str, rows: usize) -> Self {
        Self { variant, rows, outputs: 16, gated_outputs: 8 }
    }

    /// For as many rows as meet a matrix.
    fn of(arithmetic: Arithmetic, rows: usize) -> Self {
        match (arithmetic, rows) {
            (Arithmetic::Plain, 0..=1) => Self::plain("r1", 1),
            (Arithmetic::Plain, 2..=4) => Self::plain("r4", 4),
            (Arithmetic::Plain, _) => Self::plain("r8", 8),
            (Arithmetic::Units, 0..=8) => Self { variant: "t8", rows: 8, outputs: 16, gated_outputs: 16 },
            (Arithmetic::Units, 9..=32) => Self { variant: "t16", rows: 16, outputs: 64, gated_outputs: 32 },
            (Arithmetic::Units, _) => Self { variant: "t64", rows: 64, outputs: 128, gated_outputs: 64 },
        }
    }
}

pub(crate) fn embed(core: &Core, step: &Step, table: &Weight, out: ViewMut<'_>) -> Result<()> {
    let tables = step.storage::<StepTables>();
    let out = target(out).flat();
    assert!(out.rows as usize == step.rows() && out.len as usize == table.cols, "shapes of an embedding");
    assert!(step.rows() == 0 || (tables.token_max as usize) < table.rows, "token {}", tables.token_max);
    let matrix = Argument::Address(table.storage::<Matrices>().table());
    core.launch("embed", [step.rows(), 1, 1], 128, &[Argument::Step(tables.argument), matrix, Argument::View(out)])
}

/// Head h of x by matrix h.
fn multiply(core: &Core, x: ViewArgument, matrices: &Matrices, bias: u64, out: ViewArgument) -> Result<()> {
    let (rows, heads) = (x.rows as usize, x.heads as usize);
    let cut = Cut::of(matrices.arithmetic, rows);
    let arguments =
        [Argument::View(x), Argument::Address(matrices.table()), Argument::Address(bias), Argument::View(out)];
    let grid = [matrices.rows.div_ceil(cut.outputs), rows.div_ceil(cut.rows), heads];
    core.launch(&format!("linear_{}", cut.variant), grid, core.four_warps(), &arguments)
}

pub(crate) fn linear(core: &Core, x: View<'_>, weight: &Weight, out: ViewMut<'_>) -> Result<()> {
    let (x, out) = (source(x).flat(), target(out).flat());
    assert_eq!(x.rows, out.rows, "rows of a linear layer");
    assert_eq!((x.len as usize, out.len as usize), (weight.cols, weight.rows), "columns of a linear layer");
    let Linear { parts, bias } = weight.storage();
    let mut from = 0;
    for part in parts {
        let bias = bias.as_ref().map_or(0, |bias| bias.address() + from as u64 * 4);
        multiply(core, x, part, bias, out.columns(from, part.rows))?;
        from += part.rows;
    }
    Ok(())
}

pub(crate) fn linear_heads(core: &Core, x: View<'_>, weight: &Weight, out: ViewMut<'_>) -> Result<()> {
    let (x, out) = (source(x), target(out));
    assert!(x.rows == out.rows && x.heads == out.heads && x.heads as usize == weight.heads, "rows and heads");
    assert_eq!((x.len as usize, out.len as usize), (weight.cols, weight.rows), "columns of heads");
    multiply(core, x, weight.storage::<Matrices>(), 0, out)
}

pub(crate) fn ffn(core: &Core, x: View<'_>, weights: &FfnWeights, out: ViewMut<'_>) -> Result<()> {
    let (x, out) = (source(x).flat(), target(out).flat());
    assert!(x.rows == out.rows && x.len == out.len && x.len as usize == weights.hidden, "shapes of a feed-forward");
    let gated = weights.storage::<Gated>();
    let rows = x.rows as usize;
    let mut scratch = core.scratch();
    let inner = scratch.address(core, Room::Inner, rows * weights.intermediate * 4)?;
    let inner = ViewArgument::packed(inner, rows, weights.intermediate);
    let cut = Cut::of(gated.gate.arithmetic, rows);
    let tiles = rows.div_ceil(cut.rows);
    gate_up(core, Tiled { x, groups: GroupsArgument::default(), cut, tiles, out: inner }, gated)?;
    multiply(core, inner, &gated.down, 0, out)
}

/// Rows in tiles as `cut` says.
#[derive(Clone, Copy)]
struct Tiled {
    x: ViewArgument,
    groups: GroupsArgument,
    cut: Cut,
    tiles: usize,
    out: ViewArgument,
}

fn gate_up(core: &Core, rows: Tiled, gated: &Gated) -> Result<()> {
    let Tiled { x, groups, cut, tiles, out } = rows;
    let arguments = [
        Argument::View(x),
        Argument::Address(gated.gate.table()),
        Argument::Address(gated.up.table()),
        Argument::Groups(groups),
        Argument::View(out),
    ];
    let grid = [gated.gate.rows.div_ceil(cut.gated_outputs), tiles, 1];
    core.launch(&format!("gate_up_{}", cut.variant), grid, core.four_warps(), &arguments)
}

fn grouped(core: &Core, rows: Tiled, matrices: &Matrices) -> Result<()> {
    let Tiled { x, groups, cut, tiles, out } = rows;
    let arguments =
        [Argument::View(x), Argument::Address(matrices.table()), Argument::Groups(groups), Argument::View(out)];
    let grid = [matrices.rows.div_ceil(cut.outputs), tiles, 1];
    core.launch(&format!("grouped_{}", cut.variant), grid, core.four_warps(), &arguments)
}

pub(crate) fn experts(
    core: &Core,
    x: View<'_>,
    routing: &Routing,
    weights: &ExpertWeights,
    out: ViewMut<'_>,
) -> Result<()> {
    let (x, out) = (source(x).flat(), target(out).flat());
    let (hidden, intermediate, top_k) = (weights.hidden, weights.intermediate, routing.top_k());
    assert!(x.len as usize == hidden && out.len as usize == hidden, "shapes of experts");
    assert!(x.rows == out.rows && x.rows as usize == routing.rows(), "rows of experts");
    let (gated, routed) = (weights.storage::<Gated>(), routing.storage::<Routed>());
    let slots = routing.rows() * top_k;
    let cut = Cut::of(gated.gate.arithmetic, slots.div_ceil(weights.experts));
    let tiles = slots / cut.rows + slots.min(weights.experts); // enough, however the slots fall
    let mut scratch = core.scratch();
    let mut room = |room, bytes| scratch.address(core, room, bytes);
    let (order, tile_list) = (room(Room::Order, slots * 4)?, room(Room::Tiles, tiles * 16)?);
    let tile_count = room(Room::TileCount, 4)?;
    let inner = ViewArgument::packed(room(Room::Inner, slots * intermediate * 4)?, slots, intermediate);
    let outer = ViewArgument::packed(room(Room::Outer, slots * hidden * 4)?, slots, hidden);
    let arguments = [
        Argument::Address(routed.experts()),
        Argument::Address(order),
        Argument::Address(tile_list),
        Argument::Address(tile_count),
        Argument::U32(slots as u32),
        Argument::U32(weights.experts as u32),
        Argument::U32(cut.rows as u32),
    ];
    core.launch("group_slots", [usize::from(slots > 0), 1, 1], 256, &arguments)?;
    let groups = GroupsArgument { order, tiles: tile_list, tile_count, inputs_per_row: top_k as u32, zero: 0 };
    gate_up(core, Tiled { x, groups, cut, tiles, out: inner }, gated)?;
    let groups = GroupsArgument { inputs_per_row: 1, ..groups };
    grouped(core, Tiled { x: inner, groups, cut, tiles, out: outer }, &gated.down)?;
    sum_slots(core, outer, routing, out)
}

pub(crate) fn combine(core: &Core, y: View<'_>, routing: &Routing, out: ViewMut<'_>) -> Result<()> {
    let (y, out) = (source(y).flat(), target(out).flat());
    assert!(y.len == out.len && routing.rows() == out.rows as usize, "shapes of a combine");
    assert_eq!(y.rows as usize, routing.rows() * routing.top_k(), "a row for each slot");
    sum_slots(core, y, routing, out)
}

fn sum_slots(core: &Core, y: ViewArgument, routing: &Routing, out: ViewArgument) -> Result<()> {
    let weights = Argument::Address(routing.storage::<Routed>().weights());
    let arguments = [Argument::View(y), weights, Argument::View(out), Argument::U32(routing.top_k() as u32)];
    core.launch("combine", [out.rows as usize, (out.len as usize).div_ceil(128), 1], 128, &arguments)
}

pub(crate) fn route(
    core: &Core,
    logits: View<'_>,
    bias: Option<&Weight>,
    spec: &RouteSpec,
    out: &mut Routing,
) -> Result<()> {
    let groups = spec.groups.map_or(0, |g| g.groups);
    if spec.experts > EXPERTS_MAX || groups > GROUPS_MAX {
        let what = format!("a router over {} experts in {groups} groups", spec.experts);
        return Err(BackendError::Unsupported { backend: core.name.clone(), what });
    }
    let logits = source(logits).flat();
    assert_eq!(logits.len as usize, spec.experts, "a logit for each expert");
    assert!(bias.is_none_or(|bias| bias.rows * bias.cols == spec.experts), "a bias for each expert");
    assert!(out.rows() == logits.rows as usize && out.top_k() == spec.top_k, "shape of a routing");
    assert!(groups == 0 || spec.experts.is_multiple_of(groups), "equal groups");
    let argument = RouteArgument {
        experts: spec.experts as u32,
        top_k: spec.top_k as u32,
        sigmoid: u32::from(spec.scoring == Scoring::Sigmoid),
        groups: groups as u32,
        top_groups: spec.groups.map_or(0, |g| g.top_groups as u32),
        top2_sum: u32::from(spec.groups.is_some_and(|g| g.score == GroupScore::Top2Sum)),
        normalise: u32::from(spec.normalise),
        scale: spec.scale,
    };
    let routed = out.storage::<Routed>();
    let arguments = [
        Argument::View(logits),
        Argument::Address(bias.map_or(0, |bias| bias.storage::<Table>().address())),
        Argument::Address(routed.experts()),
        Argument::Address(routed.weights()),
        Argument::Route(argument),
    ];
    core.launch("route", [out.rows(), 1, 1], core.device.info.warp, &arguments)
}
