//! Which batches of which agent are taken, and when they may be acknowledged. Pure.
//!
//! An agent sends its batches in order and sends again what was not acknowledged. A batch is acknowledged when everything that it
//! says is durable, and never before those that came before it. Of an agent that is new here (another leader heard it before) any
//! batch may be the first: whatever comes twice because of that changes nothing in the records.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::ledger::Version;
use crate::model::names::{ObjectName, WorkloadRef};
use crate::model::time::Time;
use crate::wire::Epoch;

/// What agents may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most nodes. More than that are refused.
    pub nodes: usize,
    /// A node that has not been heard for so long may be forgotten where another one needs its place.
    pub silent_ms: i64,
    /// Edges that a node may send in each second, on average.
    pub edges_per_s: u32,
    /// Edges that it may send at once.
    pub burst: u32,
    /// Most batches of one node that are not acknowledged.
    pub batches: usize,
    /// Most bytes of one node that are not acknowledged.
    pub node_bytes: usize,
    /// Most bytes of all nodes that are not acknowledged.
    pub bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            nodes: 10_000,
            silent_ms: 600_000,
            edges_per_s: 2_000,
            burst: 20_000,
            batches: 64,
            node_bytes: 8 << 20,
            bytes: 64 << 20,
        }
    }
}

/// A batch that has come in, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Which life of the agent.
    pub epoch: Epoch,
    /// Its place among the batches of that life.
    pub sequence: u64,
    /// How many edges it holds.
    pub edges: usize,
    /// How large it was.
    pub bytes: usize,
}

/// What to do with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Take it, and say with [`Intake::taken`] what it waits for.
    Take,
    /// It was taken before. Every batch up to this one is durable; 0: none is.
    Again(u64),
    /// Nothing may be taken of this node for so many milliseconds; then it may be offered again.
    Wait(i64),
    /// It is refused, and the connection with it.
    Refuse(Refusal),
}

/// Why a batch is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refusal {
    /// One before it is missing.
    Ahead,
    /// There are too many nodes.
    TooManyNodes,
    /// It holds more edges or bytes than any batch may.
    TooLarge,
}

/// What has happened to batches and was not to be expected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Batches that came again.
    pub again: u64,
    /// Batches that had to wait: the node sent edges too fast.
    pub too_fast: u64,
    /// Batches that had to wait: the node has too much on its way.
    pub node_full: u64,
    /// Batches that had to wait: all nodes together have too much on its way.
    pub full: u64,
    /// Batches that were refused, by reason.
    pub refused: BTreeMap<Refusal, u64>,
}

/// Something in a record that has to be durable.
pub type Awaited = (WorkloadRef, Version);

/// What is on its way from all agents.
#[derive(Debug)]
pub struct Intake {
    limits: Limits,
    nodes: HashMap<ObjectName, Node>,
    bytes: usize,
    /// What has happened.
    pub counts: Counts,
}

#[derive(Debug)]
struct Node {
    epoch: Epoch,
    /// The last batch that was taken.
    taken: u64,
    /// The last batch that is durable, and all before it.
    durable: u64,
    on_way: VecDeque<OnWay>,
    bytes: usize,
    /// Edges that it may send, in thousandths.
    tokens: i64,
    heard: Time,
}

#[derive(Debug)]
struct OnWay {
    sequence: u64,
    bytes: usize,
    /// `None`: it is still being looked at.
    awaited: Option<Vec<Awaited>>,
}

/// How long a batch waits for room.
const ROOM_MS: i64 = 100;

impl Intake {
    /// Nothing is on its way.
    pub fn new(limits: Limits) -> Self {
        Self { limits, nodes: HashMap::new(), bytes: 0, counts: Counts::default() }
    }

    /// A batch of an agent has come in. `node` is what its token says.
    pub fn offer(&mut self, node: &ObjectName, offer: &Offer, now: Time) -> Verdict {
        let verdict = self.judge(node, offer, now);
        if let Verdict::Refuse(reason) = verdict {
            *self.counts.refused.entry(reason).or_default() += 1;
        }
        verdict
    }

    fn judge(&mut self, name: &ObjectName, offer: &Offer, now: Time) -> Verdict {
        let limits = self.limits;
        let edges = i64::try_from(offer.edges).unwrap_or(i64::MAX).saturating_mul(1000);
        let burst = i64::from(limits.burst) * 1000;
        if edges > burst || offer.bytes > limits.node_bytes.min(limits.bytes) {
            return Verdict::Refuse(Refusal::TooLarge);
        }
        if !self.nodes.contains_key(name) && self.nodes.len() >= limits.nodes && !self.forget_one(now) {
            return Verdict::Refuse(Refusal::TooManyNodes);
        }
        let node = self.nodes.entry(name.clone()).or_insert_with(|| Node {
            epoch: offer.epoch,
            taken: offer.sequence.saturating_sub(1),
            durable: 0,
            on_way: VecDeque::new(),
            bytes: 0,
            tokens: burst,
            heard: now,
        });
        let earned = now.since(node.heard).max(0).saturating_mul(i64::from(limits.edges_per_s));
        node.tokens = node.tokens.saturating_add(earned).min(burst);
        node.heard = node.heard.max(now);
        if node.epoch != offer.epoch {
            // Another life of the agent; nobody waits for what the last one had on its way.
            self.bytes -= node.bytes;
            node.on_way.clear();
            (node.epoch, node.taken, node.durable, node.bytes) =
                (offer.epoch, offer.sequence.saturating_sub(1), 0, 0);
        }
        if offer.sequence <= node.taken {
            self.counts.again += 1;
            return Verdict::Again(node.durable);
        }
        if offer.sequence > node.taken.saturating_add(1) {
            return Verdict::Refuse(Refusal::Ahead);
        }
        if node.on_way.len() >= limits.batches || node.bytes + offer.bytes > limits.node_bytes {
            self.counts.node_full += 1;
            return Verdict::Wait(ROOM_MS);
        }
        if self.bytes + offer.bytes > limits.bytes {
            self.counts.full += 1;
            return Verdict::Wait(ROOM_MS);
        }
        if node.tokens < edges {
            self.counts.too_fast += 1;
            let missing = edges - node.tokens;
            return Verdict::Wait(missing / i64::from(limits.edges_per_s.max(1)) + 1);
        }
        node.tokens -= edges;
        node.taken = offer.sequence;
        node.bytes += offer.bytes;
        self.bytes += offer.bytes;
        node.on_way.push_back(OnWay { sequence: offer.sequence, bytes: offer.bytes, awaited: None });
        Verdict::Take
    }

    /// All of a batch that was taken has been looked at: it is durable when these are.
    pub fn taken(&mut self, node: &ObjectName, epoch: Epoch, sequence: u64, mut awaited: Vec<Awaited>) {
        let Some(node) = self.nodes.get_mut(node).filter(|node| node.epoch == epoch) else { return };
        if let Some(batch) = node.on_way.iter_mut().find(|batch| batch.sequence == sequence) {
            awaited.sort_unstable();
            // Of each workload the last.
            awaited.dedup_by(|later, kept| {
                let is_same = later.0 == kept.0;
                if is_same {
                    kept.1 = kept.1.max(later.1);
                }
                is_same
            });
            awaited.shrink_to_fit();
            batch.awaited = Some(awaited);
        }
    }

    /// The last batch of the node that is durable now, if it was not so when this was last asked.
    pub fn durable(
        &mut self,
        node: &ObjectName,
        epoch: Epoch,
        is_durable: impl Fn(&WorkloadRef, Version) -> bool,
    ) -> Option<u64> {
        let node = self.nodes.get_mut(node).filter(|node| node.epoch == epoch)?;
        let before = node.durable;
        while let Some(first) = node.on_way.front_mut() {
            let Some(awaited) = &mut first.awaited else { break };
            while awaited.last().is_some_and(|(workload, version)| is_durable(workload, *version)) {
                awaited.pop();
            }
            if !awaited.is_empty() {
                break;
            }
            node.durable = first.sequence;
            node.bytes -= first.bytes;
            self.bytes -= first.bytes;
            node.on_way.pop_front();
        }
        (node.durable > before).then_some(node.durable)
    }

    /// The node is gone, or its agent shall send all again that is on its way.
    pub fn forget(&mut self, node: &ObjectName) {
        if let Some(node) = self.nodes.remove(node) {
            self.bytes -= node.bytes;
        }
    }

    /// How many nodes are known.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// How many bytes are on their way.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn forget_one(&mut self, now: Time) -> bool {
        let silent = |node: &Node| now.since(node.heard) > self.limits.silent_ms;
        let oldest = self.nodes.iter().filter(|(_, node)| silent(node)).min_by_key(|(_, node)| node.heard);
        let Some(name) = oldest.map(|(name, _)| name.clone()) else { return false };
        self.forget(&name);
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::names::Namespace;

    const NOW: Time = Time(1_000_000);
    const ONE: Epoch = Epoch([1; 16]);
    const OTHER: Epoch = Epoch([2; 16]);

    fn node(name: &str) -> ObjectName {
        ObjectName::new(name).unwrap()
    }

    fn offer(sequence: u64) -> Offer {
        Offer { epoch: ONE, sequence, edges: 10, bytes: 100 }
    }

    fn workload(name: &str) -> WorkloadRef {
        let namespace = Namespace::new("default").unwrap();
        WorkloadRef { namespace, kind: "Deployment".to_owned(), name: name.to_owned() }
    }

    fn intake(change: impl FnOnce(&mut Limits)) -> Intake {
        let mut limits = Limits { nodes: 3, edges_per_s: 100, burst: 50, batches: 3, ..Limits::default() };
        (limits.node_bytes, limits.bytes) = (1000, 1500);
        change(&mut limits);
        Intake::new(limits)
    }

    #[test]
    fn a_batch_is_acknowledged_when_it_and_all_before_it_are_durable() {
        let mut intake = intake(|_| {});
        let a = node("a");
        for sequence in 1..=3 {
            assert_eq!(intake.offer(&a, &offer(sequence), NOW), Verdict::Take);
        }
        intake.taken(&a, ONE, 1, vec![(workload("x"), 5), (workload("y"), 6), (workload("x"), 7)]);
        intake.taken(&a, ONE, 3, vec![]);
        assert_eq!(intake.durable(&a, ONE, |workload, version| workload.name == "y" || version < 7), None);
        assert_eq!(
            intake.durable(&a, ONE, |_, version| version <= 7),
            Some(1),
            "the second is looked at still"
        );
        assert_eq!(intake.durable(&a, ONE, |_, _| true), None);
        intake.taken(&a, ONE, 2, vec![]);
        assert_eq!(intake.durable(&a, ONE, |_, _| true), Some(3));
        assert_eq!(intake.bytes(), 0);
    }

    #[test]
    fn a_batch_that_comes_again_changes_nothing() {
        let mut intake = intake(|_| {});
        let a = node("a");
        assert_eq!(intake.offer(&a, &offer(1), NOW), Verdict::Take);
        assert_eq!(intake.offer(&a, &offer(1), NOW), Verdict::Again(0), "it is not durable yet");
        intake.taken(&a, ONE, 1, vec![]);
        intake.durable(&a, ONE, |_, _| true);
        assert_eq!(intake.offer(&a, &offer(1), NOW), Verdict::Again(1));
        assert_eq!((intake.counts.again, intake.bytes()), (2, 0));
        // Of an agent that is new here, whatever comes first.
        assert_eq!(intake.offer(&node("b"), &offer(40), NOW), Verdict::Take);
        assert_eq!(intake.offer(&node("b"), &offer(42), NOW), Verdict::Refuse(Refusal::Ahead));
        assert_eq!(intake.offer(&node("b"), &offer(41), NOW), Verdict::Take);
        // The agent has started again, and nobody waits for what it had on its way.
        let again = Offer { epoch: OTHER, ..offer(1) };
        assert_eq!(intake.offer(&node("b"), &again, NOW), Verdict::Take);
        assert_eq!(intake.bytes(), 100);
        intake.taken(&node("b"), ONE, 41, vec![]);
        assert_eq!(intake.durable(&node("b"), ONE, |_, _| true), None);
    }

    #[test]
    fn one_node_cannot_take_the_place_of_all() {
        let mut intake = intake(|limits| limits.burst = 1000);
        let (a, b, c) = (node("a"), node("b"), node("c"));
        let large = |sequence| Offer { bytes: 600, ..offer(sequence) };
        assert_eq!(intake.offer(&a, &large(1), NOW), Verdict::Take);
        assert_eq!(intake.offer(&a, &large(2), NOW), Verdict::Wait(ROOM_MS));
        assert_eq!(intake.offer(&b, &large(1), NOW), Verdict::Take);
        assert_eq!(intake.offer(&c, &large(1), NOW), Verdict::Wait(ROOM_MS), "all together have too much");
        for sequence in 1..=3 {
            assert_eq!(intake.offer(&c, &offer(sequence), NOW), Verdict::Take);
        }
        assert_eq!(intake.offer(&c, &offer(4), NOW), Verdict::Wait(ROOM_MS), "too many batches");
        let too_large = Offer { bytes: 1001, ..offer(4) };
        assert_eq!(intake.offer(&c, &too_large, NOW), Verdict::Refuse(Refusal::TooLarge));
        assert_eq!((intake.counts.node_full, intake.counts.full), (2, 1));
        assert_eq!(intake.counts.refused, BTreeMap::from([(Refusal::TooLarge, 1)]));
    }

    #[test]
    fn edges_come_no_faster_than_they_may() {
        let mut intake = intake(|limits| limits.batches = 1000);
        let a = node("a");
        let mut now = NOW;
        let mut edges = 0;
        for sequence in 1..=50 {
            let offer = Offer { bytes: 1, ..offer(sequence) };
            loop {
                match intake.offer(&a, &offer, now) {
                    Verdict::Take => break,
                    Verdict::Wait(millis) => now = now.plus(millis),
                    other => panic!("{other:?}"),
                }
            }
            edges += 10;
        }
        let took = now.since(NOW);
        assert!((4_500..4_700).contains(&took), "{edges} edges in {took} ms");
        assert!(intake.counts.too_fast > 0);
    }

    #[test]
    fn nodes_are_bounded_and_those_that_are_silent_make_room() {
        let mut intake = intake(|_| {});
        for name in ["a", "b", "c"] {
            assert_eq!(intake.offer(&node(name), &offer(1), NOW), Verdict::Take);
        }
        assert_eq!(intake.offer(&node("d"), &offer(1), NOW), Verdict::Refuse(Refusal::TooManyNodes));
        let later = NOW.plus(intake.limits.silent_ms + 1);
        assert_eq!(intake.offer(&node("b"), &offer(2), later), Verdict::Take);
        assert_eq!(intake.offer(&node("d"), &offer(1), later), Verdict::Take);
        assert_eq!(intake.offer(&node("b"), &offer(2), later), Verdict::Again(0), "it is known still");
        assert_eq!((intake.nodes(), intake.bytes()), (3, 400));
        intake.forget(&node("b"));
        assert_eq!((intake.nodes(), intake.bytes()), (2, 200));
    }

    proptest! {
        #[test]
        fn whatever_agents_do_what_is_kept_is_bounded_and_acknowledged_in_order(
            steps in prop::collection::vec((0usize..5, 0u8..2, 1u64..12, 0usize..60, 0usize..1200, 0u8..4), 0..200),
        ) {
            let mut intake = intake(|limits| limits.silent_ms = 50);
            let mut acknowledged: HashMap<(usize, u8), u64> = HashMap::new();
            for (n, (name, epoch, sequence, edges, bytes, then)) in steps.into_iter().enumerate() {
                let now = NOW.plus(n as i64 * 40);
                let (of, epoch_of) = (node(&format!("n{name}")), Epoch([epoch; 16]));
                let offer = Offer { epoch: epoch_of, sequence, edges, bytes };
                if intake.offer(&of, &offer, now) == Verdict::Take {
                    if then > 0 {
                        intake.taken(&of, epoch_of, sequence, vec![(workload("x"), n as u64)]);
                    }
                    acknowledged.remove(&(name, 1 - epoch));
                }
                if then > 1 && let Some(durable) = intake.durable(&of, epoch_of, |_, version| version % 3 > 0) {
                    // A node that was forgotten begins anew.
                    let before = acknowledged.insert((name, epoch), durable);
                    prop_assert!(before != Some(durable) || intake.nodes() == 3);
                }
                prop_assert!(intake.nodes() <= 3 && intake.bytes() <= 1500);
                let sum: usize = intake.nodes.values().map(|node| node.bytes).sum();
                prop_assert_eq!(sum, intake.bytes());
                for node in intake.nodes.values() {
                    let on_way: Vec<u64> = node.on_way.iter().map(|batch| batch.sequence).collect();
                    let expected: Vec<u64> = (node.taken + 1 - on_way.len() as u64..=node.taken).collect();
                    prop_assert_eq!(on_way, expected, "none is missing");
                    prop_assert!(node.bytes <= 1000 && node.on_way.len() <= 3 && node.tokens >= 0);
                }
            }
        }
    }
}
