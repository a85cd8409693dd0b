//! How the work of one op is cut. It has no influence on any result.

use std::ops::Range;

use crate::step::StepTables;

use super::SPLIT;

/// Queries (rows x heads of one kv head) that share the decoding of a tile, at most: with their outputs they stay in
/// the cache of a core.
const QUERIES_MAX: usize = 128;
/// And at least, where there are as many: fewer spend too much on decoding.
const QUERIES_MIN: usize = 64;
/// Tasks for each member: some fall behind, and tasks differ.
const TASKS_PER_MEMBER: usize = 2;
/// Values that may wait to be merged: 64 MB.
const PARTIAL_VALUES_MAX: usize = 16 << 20;

/// What a member takes at once: a group of queries over some splits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Task {
    pub group: usize,
    /// Splits, first and end.
    pub splits: [usize; 2],
    cost: usize,
}

/// Queries that share the decoding of tiles: rows of one sequence with heads of some kv heads.
/// `[kv heads, rows, heads]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub first_row: usize,
    pub rows: usize,
    pub first_head: usize,
    /// Of each kv head: all, if there are several.
    pub heads: usize,
    pub first_kv: usize,
    pub kv_heads: usize,
    /// Position of the first row.
    pub position: usize,
    /// Where its splits wait to be merged, if they are more than one task: `[splits, queries]` from here on.
    pub partials: Option<usize>,
}

impl Group {
    pub fn queries(&self) -> usize {
        self.kv_heads * self.rows * self.heads
    }

    /// Row and head of a query.
    pub fn query(&self, i: usize) -> (usize, usize) {
        let kv = i / (self.rows * self.heads);
        (self.first_row + i / self.heads % self.rows, self.first_head + kv * self.heads + i % self.heads)
    }

    pub fn position_of(&self, i: usize) -> usize {
        self.position + i / self.heads % self.rows
    }

    /// The queries of a kv head (of the group's) whose rows see a position.
    pub fn seeing(&self, kv: usize, position: usize) -> Range<usize> {
        let unseen = position.saturating_sub(self.position).min(self.rows);
        (kv * self.rows + unseen) * self.heads..(kv + 1) * self.rows * self.heads
    }

    /// Positions that its last row sees.
    pub fn end(&self) -> usize {
        self.position + self.rows
    }

    pub fn splits(&self) -> usize {
        self.end().div_ceil(SPLIT)
    }

    /// Pairs of a query and a position that it sees.
    fn cost(&self) -> usize {
        self.kv_heads * self.heads * self.rows * (2 * self.position + self.rows + 1) / 2
    }
}

/// All work of an op.
pub(super) struct Plan {
    pub groups: Vec<Group>,
    /// The largest first.
    pub tasks: Vec<Task>,
    /// Queries times splits that wait to be merged.
    pub partials: usize,
}

/// Cuts the work for a team: by rows and heads, then, where that leaves pieces too large, along the sequence.
pub(super) fn plan(tables: &StepTables, heads: usize, kv_heads: usize, v_dim: usize, members: usize) -> Plan {
    let per_kv = heads / kv_heads;
    let wanted = members * TASKS_PER_MEMBER;
    let queries = tables.tokens.len() * heads;
    let queries_max = queries.div_ceil(wanted).clamp(QUERIES_MIN, QUERIES_MAX);
    let splits: usize = tables.sequences.iter().map(|s| (s.context + s.rows.len()).div_ceil(SPLIT)).sum();
    // Short sequences alone: then heads must do.
    let pieces = members.div_ceil((splits * kv_heads).max(1));
    let heads_max = per_kv.div_ceil(pieces).min(queries_max);
    // Kv heads together, whose keys and values lie side by side, where that leaves enough tasks.
    let together = if heads_max == per_kv { (splits * kv_heads / wanted).clamp(1, kv_heads) } else { 1 };
    let mut groups = Vec::new();
    for sequence in &tables.sequences {
        let rows: Range<usize> = sequence.rows.clone();
        let rows_max = (queries_max / heads_max).clamp(1, rows.len().max(1));
        let rows_max = rows.len().div_ceil(rows.len().div_ceil(rows_max).max(1)).max(1); // of about equal length
        let kvs_max = (queries_max / (rows_max * heads_max)).clamp(1, together);
        for first_row in rows.clone().step_by(rows_max) {
            let (position, rows) = (sequence.context + first_row - rows.start, (rows.end - first_row).min(rows_max));
            for first_kv in (0..kv_heads).step_by(kvs_max) {
                let kv_heads = (kv_heads - first_kv).min(kvs_max);
                for head in (0..per_kv).step_by(heads_max) {
                    let (first_head, heads) = (first_kv * per_kv + head, (per_kv - head).min(heads_max));
                    let partials = None;
                    groups.push(Group { first_row, rows, first_head, heads, first_kv, kv_heads, position, partials });
                }
            }
        }
    }
    let fair = groups.iter().map(Group::cost).sum::<usize>().div_ceil(wanted.max(1)).max(1);
    let (mut tasks, mut partials) = (Vec::new(), 0);
    for (group, of) in groups.iter_mut().enumerate() {
        let splits = of.splits();
        let waiting = of.queries() * splits;
        let mut pieces = of.cost().div_ceil(fair).min(splits);
        if members == 1 || (partials + waiting) * v_dim > PARTIAL_VALUES_MAX {
            pieces = 1;
        }
        if pieces > 1 {
            of.partials = Some(partials);
            partials += waiting;
        }
        for i in 0..pieces {
            let splits = [splits * i / pieces, splits * (i + 1) / pieces];
            tasks.push(Task { group, splits, cost: of.cost() / pieces });
        }
    }
    tasks.sort_by_key(|task: &Task| std::cmp::Reverse(task.cost));
    Plan { groups, tasks, partials }
}

#[cfg(test)]
mod tests {
    use lingqu_types::{Batch, BlockId, SequenceSlice};

    use super::*;

    /// Sequences of `[rows, context]`.
    fn tables(sequences: &[[usize; 2]]) -> lingqu_backend::Step {
        let mut next = 0;
        let sequence = |&[rows, context]: &[usize; 2]| {
            next += rows;
            let blocks = (0..(context + rows).div_ceil(16)).map(|b| BlockId(b as u32)).collect();
            SequenceSlice { rows: next - rows..next, context, blocks, adapter: None }
        };
        let sequences: Vec<_> = sequences.iter().map(sequence).collect();
        crate::step::begin(&Batch { tokens: vec![0; next], sequences, logit_rows: vec![] }, 16)
    }

    #[test]
    fn plans_cover_everything_once() {
        let check = |sequences: &[[usize; 2]], [heads, kv_heads]: [usize; 2], members: usize, apart: bool| {
            let step = tables(sequences);
            let tables = step.storage::<StepTables>();
            let plan = plan(tables, heads, kv_heads, 512, members);
            let splits_of = |row: usize| (tables.positions[row] as usize + 1).div_ceil(SPLIT);
            let mut seen: Vec<Vec<usize>> =
                (0..tables.tokens.len() * heads).map(|i| vec![0; splits_of(i / heads)]).collect();
            let mut waiting = vec![0; plan.partials];
            for task in &plan.tasks {
                let group = &plan.groups[task.group];
                for split in task.splits[0]..task.splits[1] {
                    for i in (0..group.kv_heads).flat_map(|kv| group.seeing(kv, split * SPLIT)) {
                        let (row, head) = group.query(i);
                        assert_eq!(group.position_of(i), tables.positions[row] as usize);
                        let kv = i / (group.rows * group.heads);
                        assert_eq!(head / (heads / kv_heads), group.first_kv + kv, "{sequences:?}");
                        seen[row * heads + head][split] += 1;
                        if let Some(first) = group.partials {
                            waiting[first + split * group.queries() + i] += 1;
                        }
                    }
                }
            }
            assert!(seen.iter().flatten().all(|&count| count == 1), "{sequences:?}, {members} members");
            assert!(waiting.iter().all(|&count| count <= 1), "{sequences:?}, {members} members");
            assert_eq!(plan.partials > 0, apart, "{sequences:?}, {members} members");
        };
        check(&[[1, 0]], [1, 1], 1, false);
        check(&[[1, 0]], [12, 2], 3, false);
        check(&[[1, 4095]], [16, 1], 2, true);
        check(&[[1, 4095]], [16, 1], 1, false);
        check(&[[1, 4095]], [12, 2], 2, true);
        check(&[[1, 511], [1, 16383], [3, 700]], [12, 2], 4, true);
        check(&[[512, 0]], [16, 1], 2, false);
        check(&[[513, 100], [1, 3]], [9, 3], 3, false);
        check(&[[70, 2000]], [128, 1], 64, false);
        check(&[[2, 16383]], [128, 1], 64, true);
        check(&[[300, 300]], [8, 8], 5, false);
    }
}
