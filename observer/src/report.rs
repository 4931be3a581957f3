//! The graph and the plan as a text for a terminal.
//!
//! Everything in it is a checked name, a number or our own words, so nothing that was observed can steer the terminal.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use sidescope_common::Counter;

use crate::model::graph::{
    Dependency, DirectCall, Evidence, Graph, PortUse, Unattributed, UnresolvedReason, WorkloadNode,
};
use crate::model::mesh::PortProtocol;
use crate::model::names::WorkloadRef;
use crate::plan::{Plan, Verdict, WorkloadVerdict};

/// Colours, or none. Which of them is for the caller to say, who knows where the text goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    workload: anstyle::Style,
    dependency: anstyle::Style,
    detail: anstyle::Style,
    warning: anstyle::Style,
}

impl Style {
    /// No colours: a file, a pipe, `NO_COLOR`.
    pub fn plain() -> Self {
        let none = anstyle::Style::new();
        Self { workload: none, dependency: none, detail: none, warning: none }
    }

    /// The colours of a terminal, from the sixteen that its user chose.
    pub fn coloured() -> Self {
        let colour = |colour: anstyle::AnsiColor| anstyle::Style::new().fg_color(Some(colour.into()));
        Self {
            workload: anstyle::Style::new().bold(),
            dependency: colour(anstyle::AnsiColor::Green),
            detail: anstyle::Style::new().dimmed(),
            warning: colour(anstyle::AnsiColor::Yellow),
        }
    }
}

/// A line of the tree and what hangs below it.
struct Branch {
    text: String,
    below: Vec<Branch>,
}

impl Branch {
    fn leaf(text: String) -> Self {
        Self { text, below: Vec::new() }
    }
}

/// What a user can do against a loss.
pub fn remedy(cause: &str) -> Option<&'static str> {
    (cause == Counter::EdgesFull.name()).then_some("the edge set was full: raise --edges")
}

/// The whole report: who calls whom and how that was learnt, what each workload no longer has to carry, who gets no Sidecar
/// and why, and what could not be attributed.
pub fn tree(graph: &Graph, plan: &Plan, style: Style) -> String {
    let mut out = String::new();
    heading(&mut out, style, "Dependencies");
    let nodes: BTreeMap<&WorkloadRef, &WorkloadNode> =
        graph.workloads.iter().map(|node| (&node.workload, node)).collect();
    for verdict in &plan.verdicts {
        let root = painted(style.workload, &format!("{}/{}", verdict.namespace, verdict.name));
        let members: Vec<_> = verdict.workloads.iter().filter_map(|w| nodes.get(w).copied()).collect();
        let kinds = painted(style.detail, &kinds(verdict));
        push_line(&mut out, &format!("{root}{kinds}{}", partly(verdict, style)));
        let mut branches = dependencies(&members, style);
        let none = || vec![Branch::leaf(painted(style.detail, "calls nothing that was seen"))];
        if branches.is_empty() {
            branches = none();
        }
        branches.extend(doubts(verdict, style));
        draw(&mut out, &branches, "");
    }
    scopes(&mut out, plan, style);
    without_sidecar(&mut out, plan, style);
    unresolved(&mut out, graph, style);
    left_out(&mut out, graph, plan);
    out
}

/// What the figures of a workload leave out: pods on other machines.
fn partly(verdict: &WorkloadVerdict, style: Style) -> String {
    let (watched, known) = (verdict.pods.watched, verdict.pods.known);
    if watched >= known {
        return String::new();
    }
    painted(style.warning, &format!("  {watched} of {} watched", counted(known as u64, "pod", "pods")))
}

/// What is in the Sidecar beyond the dependencies, what may be missing, and what that would mean.
fn doubts(verdict: &WorkloadVerdict, style: Style) -> Vec<Branch> {
    if verdict.verdict != Verdict::Ready {
        return Vec::new();
    }
    let detail = |text: String| Branch::leaf(painted(style.detail, &text));
    let shared = (!verdict.sharing.is_empty()).then(|| {
        let services = counted(verdict.sharing.len() as u64, "more service", "more services");
        detail(format!("{services} in scope: without them, calls on a port of a service without an address would go astray"))
    });
    let inherits = verdict.inherits.as_ref().map(|(object, fields)| {
        let fields =
            if fields.is_empty() { String::new() } else { format!("; copied: {}", fields.join(", ")) };
        detail(format!("comes in the place of {object}{fields}"))
    });
    let warning = |text: String| Branch::leaf(painted(style.warning, &text));
    let missing = verdict.doubts.iter().map(|reason| warning(format!("not complete: {reason}")));
    let taken = verdict.taken.iter().map(|risk| warning(format!("if a call was not seen: {risk}")));
    shared.into_iter().chain(inherits).chain(missing).chain(taken).collect()
}

fn kinds(verdict: &WorkloadVerdict) -> String {
    let members: Vec<_> =
        verdict.workloads.iter().map(|workload| format!("{} {}", workload.kind, workload.name)).collect();
    format!("  ({})", members.join(", "))
}

/// The dependencies of all members of a canonical workload as one.
fn dependencies(members: &[&WorkloadNode], style: Style) -> Vec<Branch> {
    let mut by_host: BTreeMap<_, Vec<&Dependency>> = BTreeMap::new();
    for dependency in members.iter().flat_map(|node| &node.dependencies) {
        let key = (&dependency.host, &dependency.namespace);
        by_host.entry(key).or_default().push(dependency);
    }
    let services = by_host.into_iter().map(|((host, _), dependencies)| {
        let mut ports: BTreeMap<u16, Vec<&PortUse>> = BTreeMap::new();
        for (port, port_use) in dependencies.iter().flat_map(|dependency| &dependency.ports) {
            ports.entry(*port).or_default().push(port_use);
        }
        Branch {
            text: painted(style.dependency, host.as_str()),
            below: ports.iter().flat_map(|(port, uses)| port_lines(*port, uses, style)).collect(),
        }
    });
    let mut direct: BTreeMap<_, Vec<&DirectCall>> = BTreeMap::new();
    for call in members.iter().flat_map(|node| &node.direct) {
        direct.entry((&call.workload, call.address, call.port)).or_default().push(call);
    }
    let direct = direct.values().filter_map(|calls| direct_call(calls, style));
    services.chain(direct).collect()
}

/// The calls of all members to one address.
fn direct_call(calls: &[&DirectCall], style: Style) -> Option<Branch> {
    let DirectCall { workload, address, port, .. } = calls.first()?;
    let socket = std::net::SocketAddr::new(*address, *port);
    let connects = calls.iter().fold(0_u64, |sum, call| sum.saturating_add(call.connects));
    let connects = counted(connects, "connection", "connections");
    let text = format!("{workload} at its pod's address {socket}: passes by the Sidecar ({connects})");
    let unknown: BTreeSet<_> = calls.iter().flat_map(|call| &call.unknown_hosts).collect();
    let mut below: Vec<_> = unknown
        .into_iter()
        .map(|host| format!("{port}: Host \"{host}\" is no service of the mesh"))
        .collect();
    if calls.iter().any(|call| call.host_unknown) {
        below.push(format!("{port}: a host could not be read"));
    }
    let below = below.into_iter().map(|line| Branch::leaf(painted(style.warning, &line))).collect();
    Some(Branch { text: painted(style.detail, &text), below })
}

fn port_lines(port: u16, uses: &[&PortUse], style: Style) -> Vec<Branch> {
    // In TLS the name is in the handshake, and there is no port in it.
    let tls = uses.iter().all(|port_use| port_use.protocol == PortProtocol::Tls);
    let protocols: BTreeSet<_> = uses.iter().map(|port_use| word(port_use.protocol)).collect();
    let protocols: Vec<_> = protocols.into_iter().collect();
    let seen: BTreeSet<_> = uses.iter().flat_map(|port_use| &port_use.seen).collect();
    let seen: Vec<_> = seen
        .into_iter()
        .map(|evidence| match evidence {
            Evidence::Address(address) => format!("address {address}"),
            Evidence::Host(host) if tls => format!("SNI \"{host}\""),
            Evidence::DnsName(name) => format!("DNS name \"{name}\""),
            Evidence::Host(host) => format!("Host \"{host}\""),
        })
        .collect();
    let since =
        if uses.iter().any(|port_use| port_use.existing) { ", open since before the start" } else { "" };
    let learnt = painted(style.detail, &format!("learnt from {}{since}", seen.join(", ")));
    let mut lines = vec![Branch::leaf(format!("{port} {}  {learnt}", protocols.join(" or ")))];
    let unknown: BTreeSet<_> = uses.iter().flat_map(|port_use| &port_use.unknown_hosts).collect();
    for host in unknown {
        lines.push(Branch::leaf(painted(
            style.warning,
            &format!("{port}: Host \"{host}\" is no service of the mesh"),
        )));
    }
    if uses.iter().any(|port_use| port_use.host_unknown) {
        lines.push(Branch::leaf(painted(
            style.warning,
            &format!("{port}: a host could not be read; there may be more services behind this port"),
        )));
    }
    lines
}

fn word(protocol: PortProtocol) -> &'static str {
    match protocol {
        PortProtocol::Http => "HTTP",
        PortProtocol::Tls => "TLS",
        PortProtocol::Tcp => "TCP",
        PortProtocol::Udp => "UDP",
        PortProtocol::Unknown => "unknown protocol",
    }
}

fn scopes(out: &mut String, plan: &Plan, style: Style) {
    let narrowed: Vec<_> = plan.verdicts.iter().filter(|verdict| verdict.verdict == Verdict::Ready).collect();
    if narrowed.is_empty() {
        return;
    }
    heading(out, style, "Services in scope");
    let width = column(&narrowed);
    for verdict in narrowed {
        let (before, after) = (verdict.before.services, verdict.after.services);
        push_line(out, &format!("{}  {before} -> {after}", painted(style.workload, &padded(verdict, width))));
    }
}

fn without_sidecar(out: &mut String, plan: &Plan, style: Style) {
    let without: Vec<_> = plan.verdicts.iter().filter(|verdict| verdict.verdict != Verdict::Ready).collect();
    if without.is_empty() {
        return;
    }
    heading(out, style, "Without a Sidecar");
    let width = column(&without);
    for verdict in without {
        let name = painted(style.workload, &padded(verdict, width));
        let why = match &verdict.verdict {
            Verdict::Blocked(facts) => facts.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
            other => other.to_string(),
        };
        push_line(out, &format!("{name}  no Sidecar: {why}"));
    }
}

fn unresolved(out: &mut String, graph: &Graph, style: Style) {
    if graph.unresolved.is_empty() {
        return;
    }
    heading(out, style, "Not attributed");
    for entry in &graph.unresolved {
        let socket = std::net::SocketAddr::new(entry.address, entry.port);
        let reason = match entry.reason {
            UnresolvedReason::UnknownAddress => "no object of the inventory has this address",
            UnresolvedReason::AmbiguousAddress => "several objects have this address",
            UnresolvedReason::NotKnown => "whose address it was at that time is not known",
        };
        let hosts: Vec<_> = entry.hosts.iter().map(|host| format!("\"{host}\"")).collect();
        let named = if hosts.is_empty() {
            String::new()
        } else {
            format!("; it named {}, which nothing in the mesh has", hosts.join(", "))
        };
        let unread = if entry.host_unknown { "; a host could not be read" } else { "" };
        push_line(
            out,
            &format!(
                "{} -> {}  {reason}{named}{unread} ({})",
                painted(style.workload, &entry.workload.to_string()),
                painted(style.warning, &socket.to_string()),
                match entry.connects {
                    0 => "open since before the start".to_owned(),
                    count => counted(count, "connection", "connections"),
                },
            ),
        );
    }
}

/// Counts of what is in no section above.
fn left_out(out: &mut String, graph: &Graph, plan: &Plan) {
    let Unattributed { unknown, ambiguous, foreign } = graph.unattributed;
    let mut lines = Vec::new();
    if plan.not_judged > 0 {
        let workloads = counted(plan.not_judged as u64, "workload was", "workloads were");
        lines.push(format!(
            "{workloads} not watched (no pod on this machine and in the watched cgroup): not judged"
        ));
    }
    for (cause, count) in &graph.losses {
        if let Some(remedy) = remedy(cause) {
            lines.push(format!(
                "{} not recorded ({cause}): {remedy}",
                counted(*count, "connect was", "connects were")
            ));
        }
    }
    for (count, what) in [
        (foreign, "from outside the inventory's pods (not part of the graph)"),
        (unknown, "from a network namespace that was gone before its address was known"),
        (ambiguous, "from an address that several pods claim"),
    ] {
        if count > 0 {
            lines.push(format!("{} {what}", counted(count as u64, "edge", "edges")));
        }
    }
    if !lines.is_empty() {
        out.push('\n');
    }
    for line in lines {
        push_line(out, &line);
    }
}

fn counted(count: u64, one: &str, several: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { several })
}

fn column(verdicts: &[&WorkloadVerdict]) -> usize {
    let lengths = verdicts.iter().map(|verdict| verdict.namespace.as_str().len() + 1 + verdict.name.len());
    lengths.max().unwrap_or(0)
}

fn padded(verdict: &WorkloadVerdict, width: usize) -> String {
    format!("{:width$}", format!("{}/{}", verdict.namespace, verdict.name))
}

fn heading(out: &mut String, style: Style, text: &str) {
    if !out.is_empty() {
        out.push('\n');
    }
    push_line(out, &painted(style.workload, text));
}

fn draw(out: &mut String, branches: &[Branch], indent: &str) {
    for (at, branch) in branches.iter().enumerate() {
        let (fork, trunk) = if at + 1 == branches.len() { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        push_line(out, &format!("{indent}{fork}{}", branch.text));
        draw(out, &branch.below, &format!("{indent}{trunk}"));
    }
}

fn push_line(out: &mut String, line: &str) {
    writeln!(out, "{line}").expect("a String takes all that is written to it");
}

/// A plain style writes no escape sequences at all.
fn painted(style: anstyle::Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

#[cfg(test)]
mod tests;
