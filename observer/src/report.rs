//! The graph and the plan as a text for a terminal.
//!
//! Everything in it is a checked name, a number or our own words, so nothing that was observed can steer the terminal.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use crate::model::graph::{Dependency, Evidence, Graph, PortUse, UnresolvedReason, WorkloadNode};
use crate::model::mesh::PortProtocol;
use crate::model::names::WorkloadRef;
use crate::plan::{Decision, Plan, WorkloadVerdict};

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
        push_line(&mut out, &format!("{root}{}", painted(style.detail, &kinds(verdict))));
        let branches = dependencies(&members, style);
        let none = || vec![Branch::leaf(painted(style.detail, "calls nothing that was seen"))];
        draw(&mut out, &if branches.is_empty() { none() } else { branches }, "");
    }
    scopes(&mut out, plan, style);
    without_sidecar(&mut out, plan, style);
    unresolved(&mut out, graph, style);
    out
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
    let direct: BTreeSet<_> = members.iter().flat_map(|node| &node.direct).collect();
    let direct = direct.into_iter().map(|call| {
        let socket = std::net::SocketAddr::new(call.address, call.port);
        Branch::leaf(painted(
            style.detail,
            &format!("{} at its pod's address {socket}: passes by the Sidecar", call.workload),
        ))
    });
    services.chain(direct).collect()
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
            Evidence::Host(host) => format!("Host \"{host}:{port}\""),
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
    let narrowed: Vec<_> =
        plan.verdicts.iter().filter(|verdict| matches!(verdict.decision, Decision::Sidecar(_))).collect();
    if narrowed.is_empty() {
        return;
    }
    heading(out, style, "Services in scope");
    let width = column(&narrowed);
    for verdict in narrowed {
        let (before, after) = (verdict.scope.before, verdict.scope.after);
        push_line(out, &format!("{}  {before} -> {after}", painted(style.workload, &padded(verdict, width))));
    }
}

fn without_sidecar(out: &mut String, plan: &Plan, style: Style) {
    let without: Vec<_> =
        plan.verdicts.iter().filter(|verdict| !matches!(verdict.decision, Decision::Sidecar(_))).collect();
    if without.is_empty() {
        return;
    }
    heading(out, style, "Without a Sidecar");
    let width = column(&without);
    for verdict in without {
        let name = painted(style.workload, &padded(verdict, width));
        push_line(out, &format!("{name}  {}", verdict.reason()));
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
        };
        let hosts: Vec<_> = entry.hosts.iter().map(|host| format!("\"{host}\"")).collect();
        let named = if hosts.is_empty() {
            String::new()
        } else {
            format!("; it named {}, which nothing in the mesh has", hosts.join(", "))
        };
        push_line(
            out,
            &format!(
                "{} -> {}  {reason}{named} ({})",
                painted(style.workload, &entry.workload.to_string()),
                painted(style.warning, &socket.to_string()),
                match entry.connects {
                    0 => "open since before the start".to_owned(),
                    1 => "1 connection".to_owned(),
                    count => format!("{count} connections"),
                },
            ),
        );
    }
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
