//! What a server makes of what it hears of workers: who is there. No I/O.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::Member;

/// Who is there, by what etcd last said.
pub struct Roll {
    members: BTreeMap<u32, Known>,
    /// For those who were not there after a time without etcd: it may have lost its data, and they register again.
    grace: Duration,
}

struct Known {
    member: Member,
    /// Not there at the last reading: gone at this time.
    until: Option<Instant>,
}

impl Roll {
    pub fn new(grace: Duration) -> Self {
        Self { members: BTreeMap::new(), grace }
    }

    /// All that are registered, as read after a time in which nothing was heard.
    pub fn read(&mut self, found: Vec<Member>, now: Instant) {
        for (id, known) in &mut self.members {
            if !found.iter().any(|member| member.id == *id) {
                known.until = Some(now + self.grace);
            }
        }
        found.into_iter().for_each(|member| self.put(member));
    }

    /// Nothing is heard any more: until there is, nobody goes.
    pub fn hold(&mut self) {
        self.members.values_mut().for_each(|known| known.until = None);
    }

    pub fn put(&mut self, member: Member) {
        self.members.insert(member.id, Known { member, until: None });
    }

    /// Its lease ended, or was ended.
    pub fn delete(&mut self, id: u32) {
        self.members.remove(&id);
    }

    /// Lets those go whose time is over.
    pub fn expire(&mut self, now: Instant) {
        self.members.retain(|_, known| known.until.is_none_or(|until| now < until));
    }

    /// When there is something to expire.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.members.values().filter_map(|known| known.until).min()
    }

    pub fn members(&self) -> Vec<Member> {
        self.members.values().map(|known| known.member.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Registration;

    enum Does {
        Read(&'static [(u32, u64)]),
        Put(u32, u64),
        Delete(u32),
        Hold,
    }
    use Does::*;
    /// At which second, what happens, and who is there then, each with its incarnation.
    type Step = (u64, Does, &'static [(u32, u64)]);

    fn member((id, incarnation): (u32, u64)) -> Member {
        let registration = Registration { address: format!("10.0.0.{id}:1"), memory_gib: None, speed: 1.0 };
        Member { id, incarnation, registration }
    }

    #[test]
    fn who_is_there() {
        let check = |steps: &[Step]| {
            let (mut roll, start) = (Roll::new(Duration::from_secs(10)), Instant::now());
            for (number, (second, does, there)) in steps.iter().enumerate() {
                let now = start + Duration::from_secs(*second);
                roll.expire(now);
                match does {
                    Read(found) => roll.read(found.iter().copied().map(member).collect(), now),
                    Put(id, incarnation) => roll.put(member((*id, *incarnation))),
                    Delete(id) => roll.delete(*id),
                    Hold => roll.hold(),
                }
                let is: Vec<(u32, u64)> = roll.members().iter().map(|m| (m.id, m.incarnation)).collect();
                assert_eq!(is, *there, "step {number}");
            }
        };
        check(&[
            (0, Read(&[(1, 5), (0, 4)]), &[(0, 4), (1, 5)]),
            (1, Put(2, 8), &[(0, 4), (1, 5), (2, 8)]),
            (2, Delete(1), &[(0, 4), (2, 8)]),
            (3, Delete(7), &[(0, 4), (2, 8)]),
            (4, Put(1, 9), &[(0, 4), (1, 9), (2, 8)]),
            (5, Put(0, 11), &[(0, 11), (1, 9), (2, 8)]),
        ]);
        // etcd comes back empty: who registers again in time was never gone.
        check(&[
            (0, Read(&[(0, 4), (1, 5)]), &[(0, 4), (1, 5)]),
            (1, Hold, &[(0, 4), (1, 5)]),
            (100, Read(&[]), &[(0, 4), (1, 5)]),
            (105, Put(1, 2), &[(0, 4), (1, 2)]),
            (111, Hold, &[(1, 2)]),
        ]);
        // It goes away again before the time is over: the time begins anew.
        check(&[
            (0, Read(&[(0, 4)]), &[(0, 4)]),
            (10, Read(&[]), &[(0, 4)]),
            (15, Hold, &[(0, 4)]),
            (100, Read(&[]), &[(0, 4)]),
            (109, Delete(3), &[(0, 4)]),
            (110, Delete(3), &[]),
        ]);
    }

    #[test]
    fn the_next_expiry_is_the_first() {
        let (mut roll, start) = (Roll::new(Duration::from_secs(10)), Instant::now());
        assert_eq!(roll.next_expiry(), None);
        roll.read(vec![member((0, 1)), member((1, 2))], start);
        roll.read(vec![member((1, 2))], start);
        assert_eq!(roll.next_expiry(), Some(start + Duration::from_secs(10)));
    }
}
