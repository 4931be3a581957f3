//! Which kernel modules the test bed needs, and in which order they go in. Pure.

use std::collections::BTreeMap;

/// Modules of the test bed: its links and the rules that make ClusterIPs. A kernel that has one of them built in, or does the
/// same in another module, has no file for it.
pub(super) const WANTED: [&str; 24] = [
    "veth",
    "bridge",
    "dummy",
    "tcp_diag",
    "nf_tables",
    "nf_tables_ipv4",
    "nf_tables_ipv6",
    "nft_counter",
    "nft_compat",
    "nft_chain_nat",
    "nft_nat",
    "nft_masq",
    "nft_redir",
    "nft_reject_ipv4",
    "nft_reject_ipv6",
    "nft_numgen",
    "xt_nat",
    "xt_owner",
    "xt_tcpudp",
    "xt_statistic",
    "xt_MASQUERADE",
    "xt_REDIRECT",
    "ipt_REJECT",
    "ip6t_REJECT",
];

/// The files of `wanted` and of what they depend on, each after those that it needs; paths as in modules.dep.
pub(super) fn in_order(dep: &str, wanted: &[&str]) -> Vec<String> {
    let lines: BTreeMap<String, (&str, Vec<&str>)> = dep
        .lines()
        .filter_map(|line| {
            let (file, needs) = line.split_once(':')?;
            Some((name(file), (file, needs.split_whitespace().collect())))
        })
        .collect();
    let mut order = Vec::new();
    for module in wanted {
        visit(&lines, module, &mut order);
    }
    order
}

/// modules.dep has no circles: depmod leaves them out.
fn visit(lines: &BTreeMap<String, (&str, Vec<&str>)>, module: &str, order: &mut Vec<String>) {
    let Some((file, needs)) = lines.get(module) else {
        return;
    };
    if order.iter().any(|known| known == file) {
        return;
    }
    for need in needs {
        visit(lines, &name(need), order);
    }
    order.push((*file).to_owned());
}

/// The name of the module in a file; the kernel does not tell `-` from `_`.
fn name(file: &str) -> String {
    let last = file.rsplit('/').next().unwrap_or(file);
    last.split('.').next().unwrap_or(last).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_goes_in_first_and_once() {
        let dep = "kernel/a/bridge.ko.xz: kernel/b/stp.ko.xz kernel/b/llc.ko.xz\nkernel/b/stp.ko.xz: kernel/b/llc.ko.xz\n\
                   kernel/b/llc.ko.xz:\nkernel/c/nft-x.ko: kernel/b/llc.ko.xz\n";
        assert_eq!(
            in_order(dep, &["bridge", "nft_x", "bridge"]),
            ["kernel/b/llc.ko.xz", "kernel/b/stp.ko.xz", "kernel/a/bridge.ko.xz", "kernel/c/nft-x.ko"]
        );
    }

    #[test]
    fn a_module_without_a_file_is_built_in() {
        assert_eq!(in_order("kernel/veth.ko:\n", &["nft_counter", "veth"]), ["kernel/veth.ko"]);
    }
}
