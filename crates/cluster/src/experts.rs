//! Sets of experts: what a worker holds, and what it is to hold.

/// Some of the experts of one layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ExpertSet(Vec<u64>);

static NONE: ExpertSet = ExpertSet(Vec::new());

impl ExpertSet {
    pub fn all(experts: usize) -> Self {
        (0..experts).collect()
    }

    pub fn has(&self, expert: usize) -> bool {
        self.0.get(expert / 64).is_some_and(|word| word >> (expert % 64) & 1 == 1)
    }

    pub fn insert(&mut self, expert: usize) {
        let word = expert / 64;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (expert % 64);
    }

    pub fn remove(&mut self, expert: usize) {
        if let Some(word) = self.0.get_mut(expert / 64) {
            *word &= !(1 << (expert % 64));
        }
    }

    pub fn unite(&mut self, other: &Self) {
        self.0.resize(self.0.len().max(other.0.len()), 0);
        self.0.iter_mut().zip(&other.0).for_each(|(word, other)| *word |= other);
    }

    pub fn intersect(&mut self, other: &Self) {
        self.0.truncate(other.0.len());
        self.0.iter_mut().zip(&other.0).for_each(|(word, other)| *word &= other);
    }

    pub fn subtract(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(word, other)| *word &= !other);
    }

    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// Ascending.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.0.len() * 64).filter(|&expert| self.has(expert))
    }
}

impl FromIterator<usize> for ExpertSet {
    fn from_iter<I: IntoIterator<Item = usize>>(experts: I) -> Self {
        let mut set = Self::default();
        experts.into_iter().for_each(|expert| set.insert(expert));
        set
    }
}

/// Some of the experts of a model, by layer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Held(Vec<ExpertSet>);

impl Held {
    pub fn has(&self, layer: usize, expert: usize) -> bool {
        self.of(layer).has(expert)
    }

    pub fn of(&self, layer: usize) -> &ExpertSet {
        self.0.get(layer).unwrap_or(&NONE)
    }

    pub fn add(&mut self, layer: usize, experts: &[usize]) {
        if self.0.len() <= layer {
            self.0.resize(layer + 1, ExpertSet::default());
        }
        experts.iter().for_each(|&expert| self.0[layer].insert(expert));
    }

    pub fn remove(&mut self, layer: usize, experts: &[usize]) {
        if let Some(set) = self.0.get_mut(layer) {
            experts.iter().for_each(|&expert| set.remove(expert));
        }
    }

    pub fn count(&self) -> usize {
        self.0.iter().map(ExpertSet::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.0.iter().all(ExpertSet::is_empty)
    }

    /// `expert_bytes` by layer.
    pub fn bytes(&self, expert_bytes: &[u64]) -> u64 {
        self.0.iter().zip(expert_bytes).map(|(set, bytes)| set.len() as u64 * bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_sets() {
        let set = |experts: &[usize]| experts.iter().copied().collect::<ExpertSet>();
        let check = |change: fn(&mut ExpertSet, &ExpertSet), left: &[usize], right: &[usize], expected: &[usize]| {
            let mut found = set(left);
            change(&mut found, &set(right));
            assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{left:?} {right:?}");
            assert_eq!((found.len(), found.is_empty()), (expected.len(), expected.is_empty()));
        };
        check(ExpertSet::unite, &[1, 64], &[0, 200], &[0, 1, 64, 200]);
        check(ExpertSet::unite, &[200], &[3], &[3, 200]);
        check(ExpertSet::intersect, &[1, 64, 200], &[64], &[64]);
        check(ExpertSet::intersect, &[1], &[200], &[]);
        check(ExpertSet::subtract, &[1, 64, 200], &[64], &[1, 200]);
        check(ExpertSet::subtract, &[1], &[1, 200], &[]);
        assert_eq!(ExpertSet::all(130).len(), 130);
        assert!(!set(&[3]).has(usize::MAX));
    }

    #[test]
    fn what_is_held_is_counted() {
        let mut held = Held::default();
        held.add(2, &[5, 70]);
        held.add(0, &[1]);
        held.remove(2, &[5, 6]);
        held.remove(9, &[1]);
        assert!(held.has(2, 70) && !held.has(2, 5) && !held.has(7, 1));
        assert_eq!((held.count(), held.bytes(&[3, 9, 10])), (2, 13));
    }
}
