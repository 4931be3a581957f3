//! What holds for a workload of all that users want: the mesh's policy, over it the namespace's, over that the workload's own.
//!
//! An object that cannot be read, or of which there are two for one scope, is worse than none: nothing is narrowed or taken out where it
//! would have a say.

use std::collections::{BTreeMap, BTreeSet};

use super::fact::Fact;
use super::selector::selects;
use crate::model::config::{Config, ObjectRef};
use crate::model::mesh::{StaticHosts, Workload};
use crate::model::names::{Host, Namespace, WorkloadRef};
use crate::model::policy::{Mode, Policy, PolicySpec, Risk};
use crate::model::stamp::Seconds;

const HOUR: u64 = 3600;

/// What holds for a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// How far Sidescope may go.
    pub mode: Mode,
    /// How long it is watched before its Sidecar is narrowed; `None`: that does not matter.
    pub learning_window: Option<Seconds>,
    /// How long a dependency may be out of use; `None`: for ever.
    pub expire_after: Option<Seconds>,
    /// Risks that are taken.
    pub accept: BTreeSet<Risk>,
    /// The learning window where one is taken.
    pub accept_after: Seconds,
    /// Hosts that are in scope in any case.
    pub static_hosts: BTreeSet<Host>,
    /// Most hosts.
    pub max_hosts: usize,
}

impl Default for Effective {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            learning_window: Some(Seconds(24 * HOUR)),
            expire_after: Some(Seconds(30 * 24 * HOUR)),
            accept: BTreeSet::new(),
            accept_after: Seconds(7 * 24 * HOUR),
            static_hosts: BTreeSet::new(),
            max_hosts: 200,
        }
    }
}

impl Effective {
    /// Of what was watched once a reader is the judge: whatever was seen is proposed, and the risks are told.
    fn for_reader(&mut self) {
        self.learning_window = None;
        self.expire_after = None;
        self.accept = Risk::ALL.into();
    }

    fn apply(&mut self, spec: &PolicySpec) {
        self.mode = spec.mode.unwrap_or(self.mode);
        self.learning_window = spec.learning_window.or(self.learning_window);
        self.expire_after = spec.expire_after.or(self.expire_after);
        self.accept_after = spec.accept_after.unwrap_or(self.accept_after);
        self.max_hosts = spec.max_hosts.map_or(self.max_hosts, usize::from);
        if let Some(accept) = &spec.accept {
            self.accept.clone_from(accept);
        }
        self.static_hosts.extend(spec.static_hosts.iter().cloned());
    }

    /// What is allowed by both: members of one canonical workload share a Sidecar.
    fn join(&mut self, other: Self) {
        self.mode = self.mode.min(other.mode);
        self.learning_window = self.learning_window.max(other.learning_window);
        self.expire_after = self.expire_after.max(other.expire_after);
        self.accept.retain(|risk| other.accept.contains(risk));
        self.accept_after = self.accept_after.max(other.accept_after);
        self.static_hosts.extend(other.static_hosts);
        self.max_hosts = self.max_hosts.min(other.max_hosts);
    }
}

/// What plans are made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// Records, which tell through which time workloads were watched.
    Records,
    /// What was seen once, for a reader to judge.
    Once,
}

/// All that users want.
#[derive(Debug)]
pub(super) struct Wishes<'a> {
    basis: Basis,
    /// What holds where nothing is said.
    base: Effective,
    root: &'a Namespace,
    /// Those without a selector, by namespace.
    scopes: BTreeMap<&'a Namespace, Vec<&'a Policy>>,
    /// Those with one.
    selecting: BTreeMap<&'a Namespace, Vec<&'a Policy>>,
}

impl<'a> Wishes<'a> {
    pub(super) fn new(config: &'a Config, basis: Basis) -> Self {
        let mut base = Effective::default();
        if basis == Basis::Once {
            base.max_hosts = usize::MAX;
        }
        let mut wishes = Self {
            basis,
            base,
            root: &config.mesh.root,
            scopes: BTreeMap::new(),
            selecting: BTreeMap::new(),
        };
        for policy in &config.policies {
            // Whom one selects that cannot be read is not known, so it may be all.
            let selects = policy.spec.as_ref().is_ok_and(|spec| spec.selector.is_some());
            let list = if selects { &mut wishes.selecting } else { &mut wishes.scopes };
            list.entry(&policy.namespace).or_default().push(policy);
        }
        wishes
    }

    /// What holds for the members of a canonical workload.
    ///
    /// # Errors
    /// What stands in the way: an object that cannot be read, or a namespace that is left out.
    pub(super) fn of<'w>(
        &self,
        members: impl Iterator<Item = (&'w WorkloadRef, Option<&'w Workload>)>,
    ) -> Result<Effective, Fact> {
        let mut joined: Option<Effective> = None;
        for (workload, labels) in members {
            let own = self.of_one(workload, labels)?;
            match &mut joined {
                None => joined = Some(own),
                Some(joined) => joined.join(own),
            }
        }
        let mut effective = joined.unwrap_or_else(|| self.base.clone());
        if self.basis == Basis::Once {
            effective.for_reader();
        }
        Ok(effective)
    }

    fn of_one(&self, workload: &WorkloadRef, labels: Option<&Workload>) -> Result<Effective, Fact> {
        let mut effective = self.base.clone();
        if let Some((policy, spec)) = one(self.scopes.get(self.root).into_iter().flatten().copied())? {
            if spec.excluded_namespaces.contains(&workload.namespace) {
                return Err(Fact::Excluded(reference(policy)));
            }
            effective.apply(spec);
        }
        if workload.namespace != *self.root
            && let Some((policy, spec)) =
                one(self.scopes.get(&workload.namespace).into_iter().flatten().copied())?
        {
            if !spec.excluded_namespaces.is_empty() {
                let problem = format!("excludedNamespaces is for the policy in {} only", self.root);
                return Err(Fact::BadPolicy { object: reference(policy), problem });
            }
            effective.apply(spec);
        }
        let of_pods = self.selecting.get(&workload.namespace).into_iter().flatten().copied();
        let selected = of_pods.filter(|policy| {
            let selector = policy.spec.as_ref().ok().and_then(|spec| spec.selector.as_ref());
            let template = labels.map(|labels| &labels.template_labels);
            selector.zip(template).is_some_and(|(wanted, template)| selects(&wanted.match_labels, template))
        });
        if let Some((_, spec)) = one(selected)? {
            effective.apply(spec);
        }
        match labels.map(|labels| &labels.static_hosts) {
            Some(StaticHosts::Hosts(hosts)) => effective.static_hosts.extend(hosts.iter().cloned()),
            Some(StaticHosts::Wrong(problem)) => {
                let problem = format!("annotation {}: {problem}", crate::model::mesh::STATIC_HOSTS);
                let object = ObjectRef {
                    kind: "workload",
                    namespace: workload.namespace.clone(),
                    name: format!("{}/{}", workload.kind, workload.name),
                };
                return Err(Fact::BadPolicy { object, problem });
            }
            None => {}
        }
        Ok(effective)
    }
}

/// The one policy for a scope, if there is one.
fn one<'a>(
    mut policies: impl Iterator<Item = &'a Policy>,
) -> Result<Option<(&'a Policy, &'a PolicySpec)>, Fact> {
    let Some(first) = policies.next() else { return Ok(None) };
    let bad = |problem: String| Fact::BadPolicy { object: reference(first), problem };
    if let Some(second) = policies.next() {
        return Err(bad(format!("{} is for the same workloads", reference(second))));
    }
    match &first.spec {
        Ok(spec) => match problem(spec) {
            None => Ok(Some((first, spec))),
            Some(problem) => Err(bad(problem)),
        },
        Err(problem) => Err(bad(problem.clone())),
    }
}

/// What types alone do not tell of a policy; `None`: nothing.
pub fn problem(spec: &PolicySpec) -> Option<String> {
    if let Some(host) = spec.static_hosts.iter().find(|host| !host.as_str().contains('.')) {
        return Some(format!(
            "field spec.staticHosts: {:?} has no dot; write the name in full",
            host.as_str()
        ));
    }
    if spec.max_hosts == Some(0) {
        return Some("field spec.maxHosts: 0 hosts are no scope".to_owned());
    }
    (spec.selector.as_ref()).filter(|selector| selector.match_labels.is_empty()).map(|_| {
        "field spec.selector.matchLabels: is empty; leave the selector out where all are meant".to_owned()
    })
}

fn reference(policy: &Policy) -> ObjectRef {
    ObjectRef { kind: "ScopePolicy", namespace: policy.namespace.clone(), name: policy.name.clone() }
}
