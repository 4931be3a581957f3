//! Names for Sidecars: as people would choose them, valid, and each only once in its namespace.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::names::Namespace;

/// Shorter than the 253 bytes of a name, so that the name and an ending also make a file's name, which has 255.
const MAX_LEN: usize = 240;

/// The name that a Sidecar would have if it were alone.
pub(super) struct Wanted<'a> {
    pub(super) namespace: &'a Namespace,
    pub(super) name: &'a str,
    pub(super) kind: &'a str,
}

/// One name for each that is wanted, in their order. Those in `foreign` are others'.
pub(super) fn names<'a>(
    wanted: impl Iterator<Item = Wanted<'a>>,
    foreign: &BTreeSet<(&'a Namespace, &str)>,
) -> Vec<String> {
    let wanted: Vec<_> = wanted.map(|wanted| (safe(wanted.name), wanted)).collect();
    let mut counts: BTreeMap<(&Namespace, &str), usize> = BTreeMap::new();
    for (base, wanted) in &wanted {
        let is_foreign = foreign.contains(&(wanted.namespace, base.as_str()));
        *counts.entry((wanted.namespace, base)).or_default() += 1 + usize::from(is_foreign);
    }
    // Those that have their name for themselves keep it, whatever the others are renamed to.
    let mut taken: BTreeSet<(&Namespace, String)> = counts
        .iter()
        .filter(|(_, count)| **count == 1)
        .map(|((namespace, base), _)| (*namespace, (*base).to_owned()))
        .chain(foreign.iter().map(|(namespace, name)| (*namespace, (*name).to_owned())))
        .collect();
    wanted
        .iter()
        .map(|(base, wanted)| {
            if counts.get(&(wanted.namespace, base.as_str())) == Some(&1) {
                return base.clone();
            }
            // All that collide are told apart by kind, not all but the first: which is first would change with the others.
            let with_kind = format!("{base}-{}", wanted.kind.to_ascii_lowercase());
            let numbered = (2..).map(|n: u64| format!("{with_kind}-{n}"));
            std::iter::once(with_kind.clone())
                .chain(numbered)
                .find(|name| taken.insert((wanted.namespace, name.clone())))
                .expect("the numbers do not end")
        })
        .collect()
}

/// Makes a DNS-1123 subdomain of a label's value or an object's name.
fn safe(name: &str) -> String {
    let mut safe = String::new();
    for c in name.to_ascii_lowercase().chars() {
        let inner = c.is_ascii_lowercase() || c.is_ascii_digit();
        if inner {
            safe.push(c);
        } else if c == '.' && safe.ends_with(|c: char| c != '-' && c != '.') {
            safe.push('.');
        } else if !safe.is_empty() && !safe.ends_with('.') {
            safe.push('-');
        }
        // A label must not end with a dash.
        if c == '.' && safe.ends_with('-') {
            let end = safe.trim_end_matches('-').len();
            safe.truncate(end);
            safe.push('.');
        }
    }
    // All ASCII by now. Room is left for a kind and a number.
    safe.truncate(MAX_LEN - 80);
    let end = safe.trim_end_matches(['-', '.']).len();
    safe.truncate(end);
    if safe.is_empty() { "workload".to_owned() } else { safe }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::names::ObjectName;
    use proptest::prelude::*;

    fn named(wanted: &[(&str, &str, &str)]) -> Vec<String> {
        let namespaces: Vec<_> = wanted.iter().map(|(ns, _, _)| Namespace::new(*ns).unwrap()).collect();
        let wanted = wanted.iter().zip(&namespaces).map(|((_, name, kind), namespace)| Wanted {
            namespace,
            name,
            kind,
        });
        names(wanted, &BTreeSet::new())
    }

    #[test]
    fn a_name_that_somebody_else_s_sidecar_has_is_left_to_it() {
        let namespace = Namespace::new("a").unwrap();
        let wanted = Wanted { namespace: &namespace, name: "web", kind: "Deployment" };
        let foreign = BTreeSet::from([(&namespace, "web"), (&namespace, "web-deployment")]);
        assert_eq!(names([wanted].into_iter(), &foreign), ["web-deployment-2"]);
    }

    #[test]
    fn a_name_is_kept_where_it_is_free_and_told_apart_by_kind_where_not() {
        for (wanted, expected) in [
            (vec![("a", "Web_1.0", "Deployment")], vec!["web-1.0"]),
            (vec![("a", "web", "Deployment"), ("b", "web", "Deployment")], vec!["web", "web"]),
            (
                vec![("a", "web", "Deployment"), ("a", "web", "StatefulSet")],
                vec!["web-deployment", "web-statefulset"],
            ),
            (
                vec![("a", "WEB", "Pod"), ("a", "web", "Pod"), ("a", "web-pod", "Pod")],
                vec!["web-pod-2", "web-pod-3", "web-pod"],
            ),
        ] {
            assert_eq!(named(&wanted), expected, "{wanted:?}");
        }
    }

    proptest! {
        #[test]
        fn every_name_is_valid_and_there_once(wanted in prop::collection::vec(
            ("[a-cA-C0-1._-]{0,6}|[a-z.-]{200,253}|a{253}", "Pod|[A-Za-z0-9]{1,63}|K{63}"),
            0..12,
        )) {
            let wanted: Vec<_> = wanted.iter().map(|(name, kind)| ("ns", name.as_str(), kind.as_str())).collect();
            let names = named(&wanted);
            for name in &names {
                prop_assert!(ObjectName::new(name.as_str()).is_ok(), "{name:?}");
                prop_assert!(name.len() <= MAX_LEN);
            }
            prop_assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        }
    }
}
