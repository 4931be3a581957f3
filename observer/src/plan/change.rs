//! From what is there to what is wanted, in steps: what widens a scope goes at once, and what narrows one only when nothing else of the
//! step touches the same pods. So no pod ever loses what another object was to give it, in whatever order a step is carried out, and
//! none is selected by two Sidecars of ours.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::selector::LabelIndex;
use super::shadow::inherited;
use crate::model::config::{Config, ExistingSidecar};
use crate::model::mesh::Labels;
use crate::model::names::{Host, Namespace, WorkloadRef};
use crate::model::sidecar::{
    API_VERSION, Egress, EgressHost, Inherited, KIND, MANAGED_BY, Metadata, Sidecar, Spec, WorkloadSelector,
};

/// Namespace and name.
pub type Key = (Namespace, String);

/// Sidecars that Sidescope has made and that are in the cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Current(BTreeMap<Key, Arc<ExistingSidecar>>);

impl Current {
    /// Those of the mesh.
    pub fn of(config: &Config) -> Self {
        let ours = config.sidecars.iter().filter(|sidecar| sidecar.is_ours);
        Self(
            ours.map(|sidecar| ((sidecar.namespace.clone(), sidecar.name.clone()), Arc::clone(sidecar)))
                .collect(),
        )
    }

    /// One is there, or is another.
    pub fn insert(&mut self, sidecar: Arc<ExistingSidecar>) {
        self.0.insert((sidecar.namespace.clone(), sidecar.name.clone()), sidecar);
    }

    /// One is gone.
    pub fn remove(&mut self, key: &Key) {
        self.0.remove(key);
    }

    /// All, in the order of their namespaces and names.
    pub fn all(&self) -> impl Iterator<Item = &Arc<ExistingSidecar>> {
        self.0.values()
    }

    /// Which.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.0.keys()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn in_namespace(&self, namespace: &Namespace) -> impl Iterator<Item = (&Key, &Arc<ExistingSidecar>)> {
        let first = (namespace.clone(), String::new());
        self.0.range(first..).take_while(move |((of, _), _)| of == namespace)
    }
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What is written.
    pub what: What,
    /// What it does to the scope of pods.
    pub effect: Effect,
}

/// What is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A Sidecar that is not there.
    Create(Box<Sidecar>),
    /// Another content of one that is.
    Update(Box<Sidecar>),
    /// One is removed.
    Delete(Key),
}

/// What a change does to the scope of pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Effect {
    /// Nothing goes out of scope: to be done at once.
    Widens,
    /// Something does: to be done rarely, and many at a time.
    Narrows,
}

/// What a Sidecar should be.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) labels: Labels,
    pub(super) hosts: BTreeSet<Host>,
    pub(super) inherited: Inherited,
    /// Whether it is to be made where it is not, and to lose what it need not have. Else it only keeps what it has.
    pub(super) may_narrow: bool,
}

/// What is to be done now, and how many changes have to wait for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) changes: Vec<Change>,
    pub(super) deferred: usize,
}

/// The Sidecar as an object.
pub(super) fn sidecar((namespace, name): &Key, wanted: &Wanted) -> Sidecar {
    object(namespace, name, &wanted.labels, &wanted.hosts, &wanted.inherited)
}

fn object(
    namespace: &Namespace,
    name: &str,
    labels: &Labels,
    hosts: &BTreeSet<Host>,
    inherited: &Inherited,
) -> Sidecar {
    let (key, value) = MANAGED_BY;
    Sidecar {
        api_version: API_VERSION.to_owned(),
        kind: KIND.to_owned(),
        metadata: Metadata {
            name: name.to_owned(),
            namespace: namespace.clone(),
            labels: Labels::from([(key.to_owned(), value.to_owned())]),
        },
        spec: Spec {
            workload_selector: WorkloadSelector { labels: labels.clone() },
            egress: vec![Egress { hosts: hosts.iter().cloned().map(EgressHost::everywhere).collect() }],
            inherited: inherited.clone(),
        },
    }
}

/// A change that narrows, and whose pods it touches.
struct Narrowing<'a> {
    change: Change,
    touches: BTreeSet<&'a WorkloadRef>,
}

/// A step that is being made.
struct Steps<'i, 'a> {
    current: &'i Current,
    index: &'i LabelIndex<'a>,
    step: Step,
    widened: BTreeSet<&'a WorkloadRef>,
    narrowing: Vec<Narrowing<'a>>,
}

/// Finds what is to be done about these Sidecars: all, or those of one workload. `None`: it is not wanted.
pub(super) fn step<'k>(
    wanted: impl Iterator<Item = (&'k Key, Option<&'k Wanted>)>,
    current: &Current,
    index: &LabelIndex<'_>,
) -> Step {
    let mut steps =
        Steps { current, index, step: Step::default(), widened: BTreeSet::new(), narrowing: Vec::new() };
    for (key, wanted) in wanted {
        match (current.0.get(key), wanted) {
            (None, None) => {}
            (Some(there), None) => steps.widen(What::Delete(key.clone()), hits(index, there)),
            (None, Some(wanted)) if wanted.may_narrow => steps.create(key, wanted),
            (None, Some(_)) => {}
            (Some(there), Some(wanted)) => steps.update(key, there, wanted),
        }
    }
    steps.finish()
}

impl<'a> Steps<'_, 'a> {
    fn widen(&mut self, what: What, touches: BTreeSet<&'a WorkloadRef>) {
        self.widened.extend(touches);
        self.step.changes.push(Change { what, effect: Effect::Widens });
    }

    fn narrow(&mut self, what: What, touches: BTreeSet<&'a WorkloadRef>) {
        self.narrowing.push(Narrowing { change: Change { what, effect: Effect::Narrows }, touches });
    }

    fn create(&mut self, key: &Key, wanted: &Wanted) {
        let touches = self.index.hits(&key.0, &wanted.labels);
        if self.is_held(key, &touches) {
            self.step.deferred += 1;
        } else {
            self.narrow(What::Create(Box::new(sidecar(key, wanted))), touches);
        }
    }

    fn update(&mut self, key: &Key, there: &ExistingSidecar, wanted: &Wanted) {
        let (before, after) = (hits(self.index, there), self.index.hits(&key.0, &wanted.labels));
        let touches: BTreeSet<_> = before.union(&after).copied().collect();
        let catches = !after.is_subset(&before);
        if catches && self.is_held(key, &after) {
            // Another has those pods: what both want can only be sorted out from the beginning.
            self.step.deferred += 1;
            return self.widen(What::Delete(key.clone()), before);
        }
        let Some(hosts) = plain_hosts(there) else {
            // Somebody has written something else into it, and what that lets through is not ours to say.
            if wanted.may_narrow {
                self.narrow(What::Update(Box::new(sidecar(key, wanted))), touches);
            }
            return;
        };
        let union: BTreeSet<Host> = hosts.union(&wanted.hosts).cloned().collect();
        let with = |labels: &Labels, hosts| {
            What::Update(Box::new(object(&key.0, &key.1, labels, hosts, &wanted.inherited)))
        };
        let is_labelled = there.selector.as_ref() == Some(&wanted.labels);
        let releases = !before.is_subset(&after);
        if union.len() > hosts.len() || (releases && !catches) {
            let labels = there.selector.as_ref().filter(|_| catches).unwrap_or(&wanted.labels);
            let has_more = wanted.may_narrow && union.len() > wanted.hosts.len();
            self.step.deferred += usize::from(has_more || labels != &wanted.labels);
            self.widen(with(labels, &union), touches);
        } else if wanted.may_narrow && (hosts.len() > wanted.hosts.len() || !is_labelled) {
            self.narrow(with(&wanted.labels, &wanted.hosts), touches);
        } else if catches {
            self.narrow(with(&wanted.labels, &union), touches);
        } else if !is_labelled || inherited(there) != wanted.inherited {
            self.widen(with(&wanted.labels, &union), touches);
        }
    }

    /// Whether another Sidecar of ours has any of these pods now.
    fn is_held(&self, key: &Key, pods: &BTreeSet<&WorkloadRef>) -> bool {
        let mut others = self.current.in_namespace(&key.0).filter(|(other, _)| *other != key);
        others.any(|(_, sidecar)| !hits(self.index, sidecar).is_disjoint(pods))
    }

    fn finish(mut self) -> Step {
        let mut touched = self.widened;
        for Narrowing { change, touches } in self.narrowing {
            if touches.is_disjoint(&touched) {
                touched.extend(touches);
                self.step.changes.push(change);
            } else {
                self.step.deferred += 1;
            }
        }
        self.step.changes.sort_by(|a, b| (a.effect, key_of(&a.what)).cmp(&(b.effect, key_of(&b.what))));
        self.step
    }
}

fn hits<'a>(index: &LabelIndex<'a>, sidecar: &ExistingSidecar) -> BTreeSet<&'a WorkloadRef> {
    sidecar.selector.as_ref().map(|labels| index.hits(&sidecar.namespace, labels)).unwrap_or_default()
}

/// Its hosts, if it is as Sidescope writes them.
fn plain_hosts(sidecar: &ExistingSidecar) -> Option<BTreeSet<Host>> {
    let [listener] = &sidecar.egress[..] else { return None };
    if listener.is_special {
        return None;
    }
    let host = |text: &String| EgressHost::try_from(text.clone()).ok().map(|host| host.host().clone());
    listener.hosts.iter().map(host).collect()
}

fn key_of(what: &What) -> (&Namespace, &str) {
    match what {
        What::Create(sidecar) | What::Update(sidecar) => {
            (&sidecar.metadata.namespace, &sidecar.metadata.name)
        }
        What::Delete((namespace, name)) => (namespace, name),
    }
}
