//! Which servers want which experts of a worker: what one gives up another may still need.

use std::collections::{BTreeMap, BTreeSet};

use crate::message::Order;

/// Servers that are there, by the number that each chose for itself.
#[derive(Default)]
pub(crate) struct Claims(BTreeMap<u64, Server>);

#[derive(Default)]
struct Server {
    /// Open ones.
    links: usize,
    /// By layer.
    wanted: BTreeMap<usize, Wanted>,
}

#[derive(Default)]
struct Wanted {
    experts: BTreeSet<usize>,
    /// Of the last order to load.
    loaded: u64,
}

impl Claims {
    /// A link of `server` was opened.
    pub fn enter(&mut self, server: u64) {
        self.0.entry(server).or_default().links += 1;
    }

    /// A link was closed: with its last one a server wants nothing any more. What it had stays where it is until
    /// somebody says what to keep, for most servers come back.
    pub fn exit(&mut self, server: u64) {
        if let Some(entry) = self.0.get_mut(&server) {
            entry.links -= 1;
            if entry.links == 0 {
                self.0.remove(&server);
            }
        }
    }

    /// `server` wants these too.
    pub fn add(&mut self, server: u64, order: &Order) {
        if let Some(entry) = self.0.get_mut(&server) {
            let wanted = entry.wanted.entry(order.layer).or_default();
            wanted.experts.extend(&order.experts);
            wanted.loaded = wanted.loaded.max(order.number);
        }
    }

    /// `server` wants these of the layer, no others, unless it has asked for more since: an order that it has given up
    /// may come late, over another link. Returns what somebody wants of the layer.
    pub fn set(&mut self, server: u64, order: &Order) -> BTreeSet<usize> {
        if let Some(entry) = self.0.get_mut(&server) {
            let wanted = entry.wanted.entry(order.layer).or_default();
            if wanted.loaded < order.number {
                wanted.experts = order.experts.iter().copied().collect();
            }
        }
        let wanted = self.0.values().filter_map(|server| server.wanted.get(&order.layer));
        wanted.flat_map(|wanted| &wanted.experts).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_wants_is_kept() {
        let mut claims = Claims::default();
        let set = |experts: &[usize]| experts.iter().copied().collect::<BTreeSet<usize>>();
        claims.enter(1);
        claims.enter(1);
        claims.enter(2);
        let mut number = 0;
        let mut order = |layer: usize, experts: &[usize]| {
            number += 1;
            Order { number, layer, experts: experts.to_vec() }
        };
        claims.add(1, &order(0, &[1, 2]));
        claims.add(2, &order(0, &[2, 3]));
        assert_eq!(claims.set(1, &order(0, &[1])), set(&[1, 2, 3]));
        assert_eq!(claims.set(1, &order(0, &[])), set(&[2, 3]));
        assert_eq!(claims.set(1, &order(5, &[])), set(&[]));
        let late = order(0, &[]);
        claims.add(1, &order(0, &[7]));
        assert_eq!(claims.set(1, &late), set(&[2, 3, 7]), "what was loaded since is not forgotten");
        claims.exit(2);
        claims.exit(1);
        assert_eq!(claims.set(1, &order(0, &[7])), set(&[7]), "the second link is still there");
        claims.exit(1);
        claims.enter(3);
        assert_eq!(claims.set(3, &order(0, &[])), set(&[]));
    }
}
