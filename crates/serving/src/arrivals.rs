//! Requests that have not arrived whole: so many at once, so many bytes of them. When there is no more room, the one
//! that has been arriving longest gives up, so that clients who begin requests and leave them keep nobody else out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

use crate::cut::Cut;

/// The bounds, and who is under them.
pub struct Arrivals {
    requests_max: usize,
    bytes_max: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Of the next arrival.
    turn: u64,
    /// Those that are not whole, by turn: the oldest comes first.
    arriving: BTreeMap<u64, Arriving>,
    /// Of these and of those that are whole but not yet let go.
    bytes: usize,
}

struct Arriving {
    bytes: usize,
    cut: Arc<Cut>,
}

/// Why a request gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many requests are arriving at once: try again later")]
pub struct NoRoom;

impl Arrivals {
    /// At most `requests_max` requests that are not whole, and `bytes_max` bytes of all that are held.
    pub fn new(requests_max: usize, bytes_max: usize) -> Self {
        Self { requests_max, bytes_max, state: Mutex::default() }
    }

    /// A request begins to arrive. If it is one too many, the oldest is told to give up.
    pub fn begin(self: &Arc<Self>) -> Arrival {
        let cut = Arc::new(Cut::default());
        let mut state = self.lock();
        let turn = state.turn;
        state.turn += 1;
        state.arriving.insert(turn, Arriving { bytes: 0, cut: Arc::clone(&cut) });
        if state.arriving.len() > self.requests_max {
            state.cut_oldest();
        }
        drop(state);
        Arrival { arrivals: Arc::clone(self), turn, cut, whole_bytes: 0 }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics under this lock")
    }
}

impl State {
    /// False if there is none.
    fn cut_oldest(&mut self) -> bool {
        let Some((_, oldest)) = self.arriving.pop_first() else { return false };
        // Its memory follows as soon as its task runs.
        self.bytes -= oldest.bytes;
        oldest.cut.give();
        true
    }
}

/// One request on its way in. Its bytes count until it is dropped.
pub struct Arrival {
    arrivals: Arc<Arrivals>,
    turn: u64,
    cut: Arc<Cut>,
    /// Bytes of a request that is whole.
    whole_bytes: usize,
}

impl Arrival {
    /// More of it has come. Older ones give way; it may be the oldest itself.
    ///
    /// # Errors
    /// [`NoRoom`] if it is to give up.
    pub fn hold(&mut self, bytes: usize) -> Result<(), NoRoom> {
        let mut state = self.arrivals.lock();
        match state.arriving.get_mut(&self.turn) {
            Some(arriving) => arriving.bytes += bytes,
            None if self.cut.is_given() => return Err(NoRoom),
            None => self.whole_bytes += bytes,
        }
        state.bytes += bytes;
        while state.bytes > self.arrivals.bytes_max {
            if !state.cut_oldest() {
                return Err(NoRoom);
            }
        }
        match self.cut.is_given() {
            true => Err(NoRoom),
            false => Ok(()),
        }
    }

    /// It is whole: it does not give way any more.
    ///
    /// # Errors
    /// [`NoRoom`] if it was to give up already.
    pub fn whole(&mut self) -> Result<(), NoRoom> {
        if let Some(arriving) = self.arrivals.lock().arriving.remove(&self.turn) {
            self.whole_bytes = arriving.bytes;
        }
        match self.cut.is_given() {
            true => Err(NoRoom),
            false => Ok(()),
        }
    }

    /// Ready when it is to give up.
    pub fn poll_cut(&self, cx: &mut Context<'_>) -> Poll<NoRoom> {
        self.cut.poll(cx).map(|()| NoRoom)
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        let mut state = self.arrivals.lock();
        let arriving = state.arriving.remove(&self.turn).map_or(0, |arriving| arriving.bytes);
        state.bytes -= arriving + self.whole_bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What happens to requests, which are called by letters.
    enum Act {
        Begin(char),
        Hold(char, usize),
        Whole(char),
        Drop(char),
    }
    use Act::{Begin, Drop as Leave, Hold, Whole};

    /// After some acts: who has been told to give up, and the bytes that count.
    fn check(acts: &[Act], cut: &str, bytes: usize) {
        let arrivals = Arc::new(Arrivals::new(2, 100));
        let mut all: BTreeMap<char, Arrival> = BTreeMap::new();
        let mut told = String::new();
        for act in acts {
            match act {
                Begin(name) => drop(all.insert(*name, arrivals.begin())),
                Hold(name, bytes) => drop(all.get_mut(name).expect("begun").hold(*bytes)),
                Whole(name) => drop(all.get_mut(name).expect("begun").whole()),
                Leave(name) => drop(all.remove(name)),
            }
            for (name, arrival) in &all {
                if arrival.cut.is_given() && !told.contains(*name) {
                    told.push(*name);
                }
            }
        }
        assert_eq!((told.as_str(), arrivals.lock().bytes), (cut, bytes));
        drop(all);
        let state = arrivals.lock();
        assert_eq!((state.bytes, state.arriving.len()), (0, 0), "nothing is left");
    }

    #[test]
    fn the_oldest_gives_way() {
        check(&[Begin('a'), Begin('b')], "", 0);
        check(&[Begin('a'), Begin('b'), Begin('c')], "a", 0);
        check(&[Begin('a'), Begin('b'), Begin('c'), Begin('d')], "ab", 0);
        check(&[Begin('a'), Hold('a', 60), Begin('b'), Hold('b', 40)], "", 100);
        check(&[Begin('a'), Hold('a', 60), Begin('b'), Hold('b', 41)], "a", 41);
        check(&[Begin('a'), Begin('b'), Hold('b', 10), Hold('a', 91)], "a", 10);
    }

    #[test]
    fn what_is_whole_gives_way_to_nobody() {
        check(&[Begin('a'), Whole('a'), Begin('b'), Begin('c')], "", 0);
        check(&[Begin('a'), Hold('a', 80), Whole('a'), Begin('b'), Hold('b', 30)], "b", 80);
        check(&[Begin('a'), Hold('a', 80), Whole('a'), Leave('a'), Begin('b'), Hold('b', 30)], "", 30);
    }

    #[test]
    fn one_alone_is_bounded_too() {
        check(&[Begin('a'), Hold('a', 101)], "a", 0);
        check(&[Begin('a'), Hold('a', 101), Hold('a', 5), Whole('a')], "a", 0);
        // Whole, and yet more comes.
        check(&[Begin('a'), Whole('a'), Hold('a', 50)], "", 50);
    }

    #[test]
    fn those_told_to_give_up_hear_so() {
        let arrivals = Arc::new(Arrivals::new(1, 10));
        let mut first = arrivals.begin();
        assert_eq!(first.hold(5), Ok(()));
        let _second = arrivals.begin();
        assert_eq!((first.hold(1), first.whole()), (Err(NoRoom), Err(NoRoom)));
        let mut whole = arrivals.begin();
        assert_eq!((whole.whole(), whole.hold(11)), (Ok(()), Err(NoRoom)));
    }
}
