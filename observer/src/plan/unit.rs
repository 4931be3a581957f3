//! The canonical workloads of a mesh, each with what does not depend on what was seen: its selectors and names, what users want of it,
//! whose place its Sidecar takes, and what bears on its pods.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::change::Key;
use super::fact::Fact;
use super::naming;
use super::pods::Proxies;
use super::policy::{Basis, Effective, Wishes};
use super::risk::Risks;
use super::selector::{self, LabelIndex, Owner};
use super::services::Services;
use super::shadow::{self, Shadows};
use super::size::{Pushes, Size, Sizes};
use crate::model::config::{Config, ExistingSidecar, ObjectRef, OutboundMode};
use crate::model::mesh::{Labels, Mesh};
use crate::model::names::{Host, Namespace, WorkloadRef};
use crate::model::sidecar::Inherited;

/// A canonical workload. All owners of it get what any of them was seen to need, so that a new version starts with what the old one was
/// learnt to call.
#[derive(Debug)]
pub(super) struct Group<'a> {
    pub(super) namespace: &'a Namespace,
    pub(super) owners: Vec<Owner<'a>>,
    /// Its Sidecars: one, or one for each owner where no label is common to all of them and theirs alone.
    pub(super) units: Vec<Unit<'a>>,
    /// Why no Sidecar would bear on its pods.
    pub(super) obstacle: Option<Fact>,
    pub(super) wishes: Result<Effective, Fact>,
    pub(super) outbound: (OutboundMode, ObjectRef),
    /// Pods with an address of their own.
    pub(super) pods: usize,
    shadow: Option<&'a ExistingSidecar>,
    /// Place in the scopes of default Sidecars.
    narrowed_by: Option<usize>,
}

/// What one Sidecar is for.
#[derive(Debug)]
pub(super) struct Unit<'a> {
    /// Name of the Sidecar.
    pub(super) name: String,
    /// Name of the workload, for people.
    pub(super) shown: String,
    pub(super) owners: Vec<Owner<'a>>,
    pub(super) selector: Result<Labels, Fact>,
    /// A Sidecar of somebody else's that selects the pods.
    pub(super) foreign: Option<ObjectRef>,
    pub(super) pods: usize,
}

impl Unit<'_> {
    pub(super) fn key(&self, group: &Group<'_>) -> Key {
        (group.namespace.clone(), self.name.clone())
    }
}

impl Group<'_> {
    pub(super) fn inherited(&self) -> Inherited {
        self.shadow.map(shadow::inherited).unwrap_or_default()
    }

    pub(super) fn inherits(&self) -> Option<(ObjectRef, Vec<&'static str>)> {
        self.shadow.map(|shadow| (shadow::reference(shadow), shadow::inherited(shadow).fields().collect()))
    }
}

/// The scope of a default Sidecar for the workloads of one namespace.
#[derive(Debug)]
struct DefaultScope<'a> {
    hosts: HashSet<&'a Host>,
    size: Size,
}

/// A mesh, ready for decisions.
#[derive(Debug)]
pub struct Planner<'a> {
    groups: Vec<Group<'a>>,
    by_workload: HashMap<&'a WorkloadRef, usize>,
    services: Services<'a>,
    labels: LabelIndex<'a>,
    risks: Risks<'a>,
    sizes: Sizes<'a>,
    proxies: Proxies<'a>,
    providers: BTreeMap<&'a Namespace, BTreeSet<Host>>,
    default_scopes: Vec<DefaultScope<'a>>,
}

impl<'a> Planner<'a> {
    /// Gets ready. `seen` are workloads of which something is known, whether or not the mesh has them.
    pub fn new(mesh: &'a Mesh, seen: impl Iterator<Item = &'a WorkloadRef>, basis: Basis) -> Self {
        let config = &mesh.config;
        let services = Services::new(mesh);
        let labels = LabelIndex::new(mesh);
        let proxies = Proxies::new(mesh);
        let wishes = Wishes::new(config, basis);
        let grouped = selector::groups(mesh, seen);
        let all: Vec<&WorkloadRef> = grouped.values().flatten().map(|owner| owner.workload).collect();
        let shadows = Shadows::new(config, &labels, &all);
        let mut planner = Self {
            groups: Vec::new(),
            by_workload: HashMap::new(),
            risks: Risks::new(config, &services, &proxies),
            sizes: Sizes::new(config, &services),
            providers: BTreeMap::new(),
            default_scopes: Vec::new(),
            services,
            labels,
            proxies,
        };
        let mut scopes = BTreeMap::new();
        for ((namespace, name), owners) in grouped {
            let at = planner.groups.len();
            planner.by_workload.extend(owners.iter().map(|owner| (owner.workload, at)));
            planner
                .providers
                .entry(namespace)
                .or_insert_with(|| providers(config, &planner.services, namespace));
            let shadow = shadows.default_of(namespace);
            let narrowed_by = shadow.filter(|shadow| !shadow.egress.is_empty()).map(|shadow| {
                *scopes.entry(namespace).or_insert_with(|| planner.add_default_scope(shadow, namespace))
            });
            let group = Group {
                namespace,
                obstacle: planner.proxies.obstacle(namespace, &owners),
                wishes: wishes.of(owners.iter().map(|owner| (owner.workload, owner.labels))),
                outbound: shadows.outbound(namespace),
                pods: owners.iter().map(|owner| planner.proxies.live(owner.workload)).sum(),
                units: planner.units(name, &owners, &shadows),
                owners,
                shadow,
                narrowed_by,
            };
            planner.groups.push(group);
        }
        let foreign = config.sidecars.iter().filter(|sidecar| !sidecar.is_ours);
        planner.name(&foreign.map(|sidecar| (&sidecar.namespace, sidecar.name.as_str())).collect());
        planner
    }

    fn units(&self, name: &str, owners: &[Owner<'a>], shadows: &Shadows<'_>) -> Vec<Unit<'a>> {
        let unit = |shown: &str, owners: &[Owner<'a>], selector| Unit {
            name: String::new(),
            shown: shown.to_owned(),
            owners: owners.to_vec(),
            selector,
            foreign: owners.iter().find_map(|owner| shadows.selecting(owner.workload)),
            pods: owners.iter().map(|owner| self.proxies.live(owner.workload)).sum(),
        };
        if let Some(labels) = selector::shared(&self.labels, name, owners) {
            return vec![unit(name, owners, Ok(labels))];
        }
        let each = owners.iter().map(|owner| {
            let shown = if owners.len() == 1 { name } else { &owner.workload.name };
            unit(shown, std::slice::from_ref(owner), selector::own(&self.labels, owner))
        });
        each.collect()
    }

    /// Names depend on what there is, not on what was seen, so that a Sidecar keeps its name when others come.
    fn name(&mut self, foreign: &BTreeSet<(&Namespace, &str)>) {
        let mut order: Vec<(usize, usize)> = Vec::new();
        for (at, group) in self.groups.iter().enumerate() {
            order.extend((0..group.units.len()).map(|unit| (at, unit)));
        }
        let key = |(group, unit): &(usize, usize)| {
            let (group, unit) = (&self.groups[*group], *unit);
            (group.namespace, &group.units[unit].shown, group.units[unit].owners.first().map(|o| o.workload))
        };
        order.sort_by(|a, b| key(a).cmp(&key(b)));
        let wanted = order.iter().map(|at| {
            let (namespace, name, first) = key(at);
            naming::Wanted { namespace, name, kind: first.map_or("", |workload| workload.kind.as_str()) }
        });
        let names = naming::names(wanted, foreign);
        for ((group, unit), name) in order.into_iter().zip(names) {
            self.groups[group].units[unit].name = name;
        }
    }

    fn add_default_scope(&mut self, shadow: &ExistingSidecar, namespace: &Namespace) -> usize {
        let in_scope = |(host, entry): (&'a Host, &super::services::Entry<'a>)| {
            let of = entry.services.iter().map(|service| &service.namespace).collect();
            shadow::has(shadow, namespace, host, &of).then_some(host)
        };
        let hosts: HashSet<&Host> = self.services.hosts().filter_map(in_scope).collect();
        let size = self.sizes.of(hosts.iter().copied());
        self.default_scopes.push(DefaultScope { hosts, size });
        self.default_scopes.len() - 1
    }

    pub(super) fn groups(&self) -> &[Group<'a>] {
        &self.groups
    }

    pub(super) fn group_of(&self, workload: &WorkloadRef) -> Option<&Group<'a>> {
        self.by_workload.get(workload).and_then(|at| self.groups.get(*at))
    }

    pub(super) fn services(&self) -> &Services<'a> {
        &self.services
    }

    pub(super) fn labels(&self) -> &LabelIndex<'a> {
        &self.labels
    }

    pub(super) fn risks(&self) -> &Risks<'a> {
        &self.risks
    }

    pub(super) fn sizes(&self) -> &Sizes<'a> {
        &self.sizes
    }

    /// Services that the proxies of a namespace call themselves. istiod never adds them: a trace or a log would be lost, and where an
    /// external server has the say on requests, all would be refused.
    pub(super) fn providers(&self, namespace: &Namespace) -> &BTreeSet<Host> {
        static NONE: BTreeSet<Host> = BTreeSet::new();
        self.providers.get(namespace).unwrap_or(&NONE)
    }

    /// What the group's proxies are sent without our Sidecar.
    pub(super) fn before(&self, group: &Group<'a>) -> Size {
        group.narrowed_by.map_or(self.sizes.all, |at| self.default_scopes[at].size)
    }

    /// Members of a group that nobody watched; what lives in the node's own network has no proxy and is not missed.
    pub(super) fn not_judged(&self, group: &Group<'a>) -> usize {
        group.owners.iter().filter(|owner| !self.proxies.is_on_node_network(owner.workload)).count()
    }

    /// All members of the canonical workload that these are of.
    pub(super) fn members_beside(&self, workloads: &[WorkloadRef]) -> Vec<&'a WorkloadRef> {
        let group = workloads.first().and_then(|workload| self.group_of(workload));
        group.map(|group| group.owners.iter().map(|owner| owner.workload).collect()).unwrap_or_default()
    }

    pub(super) fn tally(&self) -> Tally<'_, 'a> {
        let none = vec![0; self.default_scopes.len()];
        Tally {
            planner: self,
            pushes: HashMap::new(),
            everywhere: 0,
            narrowed_everywhere: 0,
            in_default: none.clone(),
            narrowed: none,
        }
    }
}

/// Who is told of which service, while plans are made.
pub(super) struct Tally<'p, 'a> {
    planner: &'p Planner<'a>,
    /// Proxies with a Sidecar of ours that has the host.
    pushes: HashMap<Host, usize>,
    everywhere: usize,
    in_default: Vec<usize>,
    /// Of those, proxies that get a Sidecar of ours.
    narrowed: Vec<usize>,
    narrowed_everywhere: usize,
}

impl<'a> Tally<'_, 'a> {
    /// The pods of a unit get a Sidecar with these hosts.
    pub(super) fn narrowed(&mut self, group: &Group<'a>, unit: &Unit<'a>, hosts: &BTreeSet<Host>) {
        if unit.pods == 0 {
            return;
        }
        match group.narrowed_by {
            Some(at) => self.narrowed[at] += unit.pods,
            None => self.narrowed_everywhere += unit.pods,
        }
        for host in hosts {
            match self.pushes.get_mut(host) {
                Some(count) => *count += unit.pods,
                None => drop(self.pushes.insert(host.clone(), unit.pods)),
            }
        }
    }

    pub(super) fn finish(mut self) -> BTreeMap<Host, Pushes> {
        // Of a pod without a proxy nobody is told anything.
        for group in self.planner.groups.iter().filter(|group| group.obstacle.is_none()) {
            match group.narrowed_by {
                Some(at) => self.in_default[at] += group.pods,
                None => self.everywhere += group.pods,
            }
        }
        let scopes = &self.planner.default_scopes;
        let hosts = self.planner.services.hosts().map(|(host, _)| {
            let (mut before, mut wide) = (self.everywhere, self.everywhere - self.narrowed_everywhere);
            for (at, _) in scopes.iter().enumerate().filter(|(_, scope)| scope.hosts.contains(host)) {
                before += self.in_default[at];
                wide += self.in_default[at] - self.narrowed[at];
            }
            let after = wide + self.pushes.get(host).copied().unwrap_or(0);
            (host.clone(), Pushes { before, after })
        });
        hosts.collect()
    }
}

/// Services of providers that are in use in a namespace, as far as the mesh has them.
fn providers(config: &Config, services: &Services<'_>, namespace: &Namespace) -> BTreeSet<Host> {
    let is_here = |object: &ObjectRef| object.namespace == *namespace || object.namespace == config.mesh.root;
    let telemetry =
        config.telemetry.iter().filter(|rule| is_here(&rule.object)).flat_map(|rule| &rule.providers);
    let authorization = config.authorization.iter().filter(|rule| is_here(&rule.object));
    let asked = authorization.filter_map(|rule| rule.provider.as_ref());
    let named = config.mesh.default_providers.iter().chain(telemetry).chain(asked);
    let hosts = named.filter_map(|name| config.mesh.providers.get(name)).flatten();
    hosts.chain(&config.mesh.always).filter(|host| services.entry(host).is_some()).cloned().collect()
}
