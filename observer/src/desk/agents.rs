//! Which batches of which agent were taken. An agent sends its batches in order, and again those that were not acknowledged, so one that
//! is no newer than the last one was taken before: it is on its way still, or durable. Of an agent that is new here (another
//! leader heard it before) any batch may be the first; what comes twice because of that changes nothing in the records.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::open::Key;
use crate::model::names::ObjectName;
use crate::model::time::Time;
use crate::wire::Epoch;

/// Most agents that are remembered; those that were silent for the longest time are forgotten.
const MOST: usize = 10_000;
/// Edges of a node that are looked at in each second, on average.
const EDGES_PER_S: i64 = 2_000;
/// Edges of a node that are looked at as soon as they come.
const BURST: i64 = 20_000;

/// What came of which agent.
#[derive(Debug, Default)]
pub(super) struct Agents {
    agents: HashMap<Arc<ObjectName>, Agent>,
}

#[derive(Debug)]
struct Agent {
    epoch: Epoch,
    /// The last batch that was taken.
    last: u64,
    /// Those that are not durable.
    on_way: BTreeMap<u64, Key>,
    /// Edges that may be looked at, in thousandths.
    tokens: i64,
    heard: Time,
}

/// Whether a batch is new.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// It is. It is to be looked at after so many milliseconds.
    New { node: Arc<ObjectName>, wait: i64 },
    /// It is here, and not durable yet.
    OnWay(Key),
    /// It was here.
    Durable,
}

impl Agents {
    /// A batch has come in.
    pub(super) fn arrive(
        &mut self,
        node: &ObjectName,
        (epoch, sequence): (Epoch, u64),
        edges: usize,
        now: Time,
    ) -> Arrival {
        let name = self.name(node);
        let agent = self.agents.entry(Arc::clone(&name)).or_insert_with(|| Agent {
            epoch,
            last: 0,
            on_way: BTreeMap::new(),
            tokens: BURST * 1000,
            heard: now,
        });
        let earned = now.since(agent.heard).max(0).saturating_mul(EDGES_PER_S);
        agent.tokens = agent.tokens.saturating_add(earned).min(BURST * 1000);
        agent.heard = agent.heard.max(now);
        if agent.epoch != epoch {
            // Another life of the agent. What the last one told goes its way, and nobody asks for it any more.
            (agent.epoch, agent.last) = (epoch, 0);
            agent.on_way.clear();
        }
        if let Some(key) = agent.on_way.get(&sequence) {
            return Arrival::OnWay(*key);
        }
        if sequence <= agent.last {
            return Arrival::Durable;
        }
        agent.last = sequence;
        agent.tokens =
            agent.tokens.saturating_sub(i64::try_from(edges).unwrap_or(i64::MAX).saturating_mul(1000));
        Arrival::New { node: name, wait: (-agent.tokens / EDGES_PER_S).max(0) }
    }

    /// The batch is on its way.
    pub(super) fn took(&mut self, node: &ObjectName, sequence: u64, key: Key) {
        if let Some(agent) = self.agents.get_mut(node) {
            agent.on_way.insert(sequence, key);
        }
    }

    /// The batch is durable.
    pub(super) fn durable(&mut self, node: &ObjectName, sequence: u64, key: Key) {
        if let Some(agent) = self.agents.get_mut(node)
            && agent.on_way.get(&sequence) == Some(&key)
        {
            agent.on_way.remove(&sequence);
        }
    }

    fn name(&mut self, node: &ObjectName) -> Arc<ObjectName> {
        if let Some((name, _)) = self.agents.get_key_value(node) {
            return Arc::clone(name);
        }
        if self.agents.len() >= MOST {
            let silent = self.agents.iter().min_by_key(|(_, agent)| agent.heard);
            if let Some(name) = silent.map(|(name, _)| Arc::clone(name)) {
                self.agents.remove(&name);
            }
        }
        Arc::new(node.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Epoch = Epoch([1; 16]);
    const OTHER: Epoch = Epoch([2; 16]);

    fn node(name: &str) -> ObjectName {
        ObjectName::new(name).unwrap()
    }

    fn arrive(agents: &mut Agents, name: &str, epoch: Epoch, sequence: u64) -> &'static str {
        match agents.arrive(&node(name), (epoch, sequence), 1, Time(0)) {
            Arrival::New { .. } => {
                agents.took(&node(name), sequence, sequence + 100);
                "new"
            }
            Arrival::OnWay(key) => {
                assert_eq!(key, sequence + 100);
                "on its way"
            }
            Arrival::Durable => "durable",
        }
    }

    #[test]
    fn a_batch_is_new_once() {
        let mut agents = Agents::default();
        // Of an agent that another leader has heard before.
        assert_eq!(arrive(&mut agents, "a", ONE, 7), "new");
        assert_eq!(arrive(&mut agents, "a", ONE, 9), "new");
        assert_eq!(arrive(&mut agents, "a", ONE, 7), "on its way");
        agents.durable(&node("a"), 7, 107);
        assert_eq!(arrive(&mut agents, "a", ONE, 7), "durable");
        assert_eq!(arrive(&mut agents, "a", ONE, 9), "on its way");
        assert_eq!(arrive(&mut agents, "b", ONE, 7), "new", "another node's");
        // Another life begins anew, and what the last one had on its way is not its own.
        assert_eq!(arrive(&mut agents, "a", OTHER, 1), "new");
        agents.durable(&node("a"), 9, 109);
        assert_eq!(arrive(&mut agents, "a", OTHER, 9), "new");
    }

    #[test]
    fn edges_that_come_too_fast_are_looked_at_later() {
        let mut agents = Agents::default();
        let mut waits = Vec::new();
        for (sequence, now) in [(1, 0), (2, 0), (3, 1_000), (4, 100_000)] {
            let edges = usize::try_from(BURST - 1_000).unwrap();
            match agents.arrive(&node("a"), (ONE, sequence), edges, Time(now)) {
                Arrival::New { wait, .. } => waits.push(wait),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(waits, [0, 9_000, 17_500, 0]);
    }

    #[test]
    fn agents_are_bounded_and_the_silent_ones_make_room() {
        let mut agents = Agents::default();
        for n in 0..=MOST {
            agents.arrive(&node(&format!("n{n}")), (ONE, 5), 1, Time(i64::try_from(n).unwrap()));
        }
        assert_eq!(agents.agents.len(), MOST);
        assert_eq!(arrive(&mut agents, "n1", ONE, 5), "durable");
        assert_eq!(arrive(&mut agents, "n0", ONE, 5), "new");
    }
}
