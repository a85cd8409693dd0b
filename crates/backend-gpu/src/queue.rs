//! Launches on their way to the stream. A list of launches between two waits that comes again, as every step of
//! decoding does, becomes a graph: one call of the driver instead of a thousand. Nobody above knows.
//!
//! A launch goes out at once unless it continues a list that is known; then it is kept back until the list is whole
//! (and the graph goes out) or differs (and all go out one by one). Whatever touches memory calls [`Queue::flush`]
//! first, so the order of work is that of the calls.

use crate::driver::{Driver, DriverError, Handle, Launch, Result};

/// Shorter lists are not worth a graph.
const LIST_MIN: usize = 4;
/// A longer list is cut here: bounds what is kept of it.
const LIST_MAX: usize = 4096;
/// Graphs that are kept: shapes of a step that alternate.
pub(crate) const GRAPHS_MAX: usize = 32;
/// Lists that were seen once.
pub(crate) const SEEN_MAX: usize = 16;

/// A list that may come again.
struct Known {
    launches: Vec<Launch>,
    /// Made when it came the second time.
    graph: Option<Handle>,
    /// The flush that had it last.
    used: u64,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Queue {
    /// Launches since the last flush.
    list: Vec<Launch>,
    /// How many of them the driver has.
    given: usize,
    known: Vec<Known>,
    /// Of these, the ones that begin with `list`. As long as there are any, nothing is given.
    repeats: Vec<usize>,
    flushes: u64,
    makes_graphs: bool,
    /// What went wrong where it could not be told.
    failed: Option<DriverError>,
}

impl Queue {
    pub fn new(makes_graphs: bool) -> Self {
        Self { makes_graphs, ..Self::default() }
    }

    /// Takes a launch. Errors may be those of earlier ones.
    pub fn push(&mut self, driver: &dyn Driver, stream: Handle, launch: Launch) -> Result<()> {
        self.failed.take().map_or(Ok(()), Err)?;
        if !self.makes_graphs {
            return launch_one(driver, stream, &launch);
        }
        if self.list.len() == LIST_MAX {
            self.flush(driver, stream)?;
        }
        if self.list.is_empty() {
            self.repeats = (0..self.known.len()).collect();
        }
        let (known, at) = (&self.known, self.list.len());
        self.repeats.retain(|number| known[*number].launches.get(at) == Some(&launch));
        self.list.push(launch);
        if self.repeats.is_empty() { self.give(driver, stream) } else { Ok(()) }
    }

    /// Hands over all that was taken.
    pub fn flush(&mut self, driver: &dyn Driver, stream: Handle) -> Result<()> {
        self.failed.take().map_or(Ok(()), Err)?;
        if self.list.is_empty() {
            return Ok(());
        }
        self.flushes += 1;
        let same = self.repeats.iter().copied().find(|number| self.known[*number].launches.len() == self.list.len());
        let Some(number) = same else {
            self.give(driver, stream)?;
            self.remember();
            return Ok(());
        };
        self.known[number].used = self.flushes;
        match self.replay(driver, stream, number) {
            Ok(()) => {
                self.list.clear();
                Ok(())
            }
            Err(_) => {
                // Graphs are a convenience: without them all goes on as before, or says itself what is wrong.
                self.forget(driver, stream);
                self.makes_graphs = false;
                self.give(driver, stream).map(|()| self.start_anew())
            }
        }
    }

    /// `flush` for those who cannot tell an error: the next call does.
    pub fn flush_silently(&mut self, driver: &dyn Driver, stream: Handle) {
        if let Err(error) = self.flush(driver, stream) {
            self.failed = Some(error);
        }
    }

    /// Waits, and gives all graphs back.
    pub fn forget(&mut self, driver: &dyn Driver, stream: Handle) {
        let graphs: Vec<Handle> = self.known.drain(..).filter_map(|known| known.graph).collect();
        self.repeats.clear();
        if !graphs.is_empty() {
            let _ = driver.wait(stream); // a graph may still run; nothing can be done about an error here
        }
        for graph in graphs {
            let _ = driver.graph_destroy(graph);
        }
    }

    fn start_anew(&mut self) {
        self.list.clear();
        self.given = 0;
    }

    /// Hands over, one by one, what was kept back.
    fn give(&mut self, driver: &dyn Driver, stream: Handle) -> Result<()> {
        while let Some(launch) = self.list.get(self.given) {
            if let Err(error) = launch_one(driver, stream, launch) {
                self.start_anew();
                return Err(error);
            }
            self.given += 1;
        }
        Ok(())
    }

    /// The list as a graph, made now if there is none. On an error nothing of it has been handed over.
    fn replay(&mut self, driver: &dyn Driver, stream: Handle, number: usize) -> Result<()> {
        let graph = match self.known[number].graph {
            Some(graph) => graph,
            None => {
                self.make_room(driver, stream)?;
                *self.known[number].graph.insert(driver.graph_create(&self.list)?)
            }
        };
        driver.graph_launch(graph, stream)
    }

    /// Room for one more graph. The list in hand has none, so it stays.
    fn make_room(&mut self, driver: &dyn Driver, stream: Handle) -> Result<()> {
        let graphs = self.known.iter_mut().filter(|known| known.graph.is_some());
        let (count, oldest) = graphs.fold((0, None::<&mut Known>), |(count, oldest), known| match oldest {
            Some(oldest) if oldest.used < known.used => (count + 1, Some(oldest)),
            _ => (count + 1, Some(known)),
        });
        if count < GRAPHS_MAX {
            return Ok(());
        }
        let graph = oldest.and_then(|oldest| oldest.graph.take()).expect("counted");
        driver.wait(stream)?; // it may still run
        driver.graph_destroy(graph)
    }

    /// Keeps the list, all of which the driver has, for its next time.
    fn remember(&mut self) {
        let launches = std::mem::take(&mut self.list);
        self.start_anew();
        if launches.len() < LIST_MIN {
            return;
        }
        let seen = self.known.iter().enumerate().filter(|(_, known)| known.graph.is_none());
        let oldest = seen.clone().min_by_key(|(_, known)| known.used).map(|(number, _)| number);
        let known = Known { launches, graph: None, used: self.flushes };
        match oldest {
            Some(number) if seen.count() >= SEEN_MAX => self.known[number] = known,
            _ => self.known.push(known),
        }
    }
}

fn launch_one(driver: &dyn Driver, stream: Handle, launch: &Launch) -> Result<()> {
    driver.launch(launch, stream).map_err(|error| match error {
        DriverError::Call { call, code, words } => {
            DriverError::Call { call: format!("{call} of {}", launch.kernel), code, words }
        }
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::Shape;
    use crate::driver::fake::Fake;

    const STREAM: Handle = 3;

    fn launch(kind: usize) -> Launch {
        let shape = Shape { grid: [1 + kind as u32, 1, 1], block: [32, 1, 1], shared_bytes: 0 };
        Launch { function: 6, kernel: "k", shape, arguments: Vec::new() }
    }

    struct Bench {
        fake: Fake,
        queue: Queue,
    }

    impl Bench {
        fn new() -> Self {
            Self { fake: Fake::default(), queue: Queue::new(true) }
        }

        /// Gives launches of these kinds and flushes; the calls of the driver that came of it.
        fn run(&mut self, kinds: &[usize]) -> Vec<&'static str> {
            let before = self.fake.state().calls.len();
            kinds.iter().for_each(|kind| self.queue.push(&self.fake, STREAM, launch(*kind)).unwrap());
            self.queue.flush(&self.fake, STREAM).unwrap();
            self.fake.state().calls[before..].to_vec()
        }
    }

    #[test]
    fn a_list_becomes_a_graph_when_it_comes_again() {
        let mut bench = Bench::new();
        let plain = ["launch"; 5];
        assert_eq!(bench.run(&[1, 2, 3, 4, 5]), plain);
        assert_eq!(bench.run(&[1, 2, 3, 4, 6]), plain, "the same but for its end");
        assert_eq!(bench.run(&[1, 2, 3, 4]), ["launch"; 4], "a part of it");
        assert_eq!(bench.run(&[1, 2, 3, 4, 5]), ["graph_create", "graph_launch"]);
        assert_eq!(bench.run(&[1, 2, 3, 4, 5, 1]), ["launch"; 6], "more than it");
        assert_eq!(bench.run(&[1, 2, 3, 4, 5]), ["graph_launch"]);
        assert_eq!(bench.run(&[1, 2, 3, 4, 6]), ["graph_create", "graph_launch"]);
        for _ in 0..3 {
            assert_eq!(bench.run(&[7, 7, 7]), ["launch"; 3], "too short to be worth it");
        }
        assert_eq!(bench.run(&[]), [""; 0]);
        bench.queue.forget(&bench.fake, STREAM);
        assert_eq!(bench.fake.state().graphs.len(), 0);
        assert_eq!(bench.run(&[1, 2, 3, 4, 5]), plain);
    }

    #[test]
    fn a_launch_that_continues_no_known_list_goes_out_at_once() {
        let mut bench = Bench::new();
        bench.run(&[1, 2, 3, 4, 5]);
        let before = bench.fake.state().calls.len();
        let mut given = Vec::new();
        for kind in [1, 2, 9, 4] {
            bench.queue.push(&bench.fake, STREAM, launch(kind)).unwrap();
            given.push(bench.fake.state().calls.len() - before);
        }
        assert_eq!(given, [0, 0, 3, 4]);
    }

    #[test]
    fn lists_and_graphs_are_bounded() {
        let mut bench = Bench::new();
        for round in 0..3 {
            for kind in 0..3 * GRAPHS_MAX {
                bench.run(&[kind; LIST_MIN]);
                if kind % 2 == 0 {
                    bench.run(&[kind; LIST_MIN]);
                }
                assert!(bench.fake.state().graphs.len() <= GRAPHS_MAX, "round {round}");
                assert!(bench.queue.known.len() <= GRAPHS_MAX + SEEN_MAX, "round {round}");
            }
        }
        assert_eq!(bench.fake.state().graphs.len(), GRAPHS_MAX);
        // What was used last is still there.
        let last = (3 * GRAPHS_MAX - 2) / 2 * 2;
        assert_eq!(bench.run(&[last; LIST_MIN]), ["graph_launch"]);
        bench.queue.forget(&bench.fake, STREAM);
        assert_eq!(bench.fake.state().graphs.len(), 0);
    }

    #[test]
    fn a_list_without_end_is_cut() {
        let mut bench = Bench::new();
        let endless = vec![1; LIST_MAX + 10];
        assert_eq!(bench.run(&endless).len(), endless.len());
        let again = bench.run(&endless);
        assert_eq!(again, ["graph_create", "graph_launch", "graph_create", "graph_launch"]);
        assert!(bench.queue.list.is_empty());
    }

    #[test]
    fn what_could_not_be_told_is_told_by_the_next_call() {
        let mut bench = Bench::new();
        bench.run(&[1, 2, 3, 4, 5]);
        bench.queue.push(&bench.fake, STREAM, launch(1)).unwrap(); // kept back
        bench.fake.state().fails_named = Some("launch");
        bench.queue.flush_silently(&bench.fake, STREAM);
        bench.fake.state().fails_named = None;
        let error = bench.queue.push(&bench.fake, STREAM, launch(2)).unwrap_err().to_string();
        assert!(error.contains("launch of k") && error.contains("refused"), "{error}");
        assert_eq!(bench.run(&[8]), ["launch"]);
    }
}
