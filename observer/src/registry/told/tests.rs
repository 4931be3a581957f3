use serde::de::DeserializeSeed;
use serde_json::{Value, json};

use super::*;
use crate::model::time::Time;

fn tell(registry: &mut Registry, kind: Kind, what: What) -> Result<(), Unreadable> {
    take(registry, Told { kind, what, seen: Span::at(Time(1_000)) })
}

fn there(kind: Kind, object: Value) -> What {
    What::There(Box::new(kind.deserialize(object).unwrap()))
}

fn mesh(name: &str, text: Option<&str>) -> What {
    let data = text.map_or(json!({"meshNetworks": "x"}), |text| json!({"mesh": text, "meshNetworks": "x"}));
    there(Kind::MeshConfig, json!({"metadata": {"name": name, "namespace": "istio-system"}, "data": data}))
}

fn names<T>(kept: &crate::registry::Kept<T>) -> Vec<&str> {
    kept.iter().map(|(key, _)| key.name.as_str()).collect()
}

#[test]
fn a_kind_is_known_from_the_end_of_its_listing_until_an_interruption() {
    let mut registry = Registry::new(Time(0));
    let is_missing = |registry: &Registry| registry.missing().any(|kind| kind == Kind::Sidecar);
    for (what, missing) in [
        (What::Begin, true),
        (there(Kind::Sidecar, json!({"metadata": {"name": "a"}})), true),
        (there(Kind::Sidecar, json!({"metadata": {"name": "b"}})), true),
        (What::End, false),
        (What::Interrupted, true),
        (What::Resumed, false),
        (What::Begin, true),
        (there(Kind::Sidecar, json!({"metadata": {"name": "b"}})), true),
        (there(Kind::Sidecar, json!({"metadata": {"name": "c"}})), true),
        (What::End, false),
    ] {
        tell(&mut registry, Kind::Sidecar, what).unwrap();
        assert_eq!(is_missing(&registry), missing);
    }
    assert_eq!(names(&registry.configuration().sidecars), ["b", "c"]);
    let gone = Kind::Sidecar.deserialize(json!({"metadata": {"name": "b"}})).unwrap();
    tell(&mut registry, Kind::Sidecar, What::Gone(Box::new(gone))).unwrap();
    assert_eq!(names(&registry.configuration().sidecars), ["c"]);
}

#[test]
fn attribution_waits_only_for_kinds_that_bear_on_it() {
    let mut registry = Registry::new(Time(0));
    let (bearing, other): (Vec<Kind>, Vec<Kind>) =
        Kind::ALL.into_iter().partition(|kind| kind.bears_on_attribution());
    let is_settled = |registry: &mut Registry| {
        registry.settle(Time(0));
        registry.settled_through(Time(10_000)).is_some()
    };
    for kind in bearing {
        assert!(!is_settled(&mut registry), "{kind:?}");
        tell(&mut registry, kind, What::Begin).unwrap();
        tell(&mut registry, kind, What::End).unwrap();
    }
    assert!(is_settled(&mut registry));
    assert_eq!(registry.missing().collect::<Vec<_>>(), other);
    tell(&mut registry, Kind::Sidecar, What::Begin).unwrap();
    assert!(registry.settled_through(Time(10_000)).is_some());
    tell(&mut registry, Kind::VirtualService, What::Interrupted).unwrap();
    assert!(!is_settled(&mut registry));
}

#[test]
fn the_configurations_of_all_revisions_are_kept_and_other_config_maps_are_not() {
    let mut registry = Registry::new(Time(0));
    tell(&mut registry, Kind::MeshConfig, What::Begin).unwrap();
    for (name, text) in [
        ("istio", Some("trustDomain: a")),
        ("istio-canary", Some("")),
        ("istio-sidecar-injector", None),
        ("istiod", Some("")),
        ("kube-root-ca.crt", None),
    ] {
        tell(&mut registry, Kind::MeshConfig, mesh(name, text)).unwrap();
    }
    tell(&mut registry, Kind::MeshConfig, What::End).unwrap();
    assert_eq!(names(&registry.configuration().meshes), ["istio", "istio-canary"]);
    // One that cannot be read is not taken for what it was.
    let err = tell(&mut registry, Kind::MeshConfig, mesh("istio", Some("- 1"))).unwrap_err();
    assert!(err.to_string().contains("ConfigMap istio-system/istio"), "{err}");
    assert_eq!(names(&registry.configuration().meshes), ["istio-canary"]);
    tell(&mut registry, Kind::MeshConfig, mesh("istio-canary", None)).unwrap();
    assert!(registry.configuration().meshes.iter().next().is_none());
}

#[test]
fn what_cannot_be_read_is_told_once_and_known_until_it_makes_sense_or_is_gone() {
    let mut registry = Registry::new(Time(0));
    let unreadable = |name: &str, problem: &str| Unreadable::new(Kind::Service, "default", name, problem);
    let known = |registry: &Registry| -> Vec<String> {
        registry.unreadable().map(|unreadable| unreadable.name.clone()).collect()
    };
    let list = |registry: &mut Registry, names: &[&str]| -> usize {
        tell(registry, Kind::Service, What::Begin).unwrap();
        let told = names.iter().map(|name| What::Unreadable(unreadable(name, "odd")));
        let new = told.filter(|what| tell(registry, Kind::Service, what.clone()).is_err()).count();
        tell(registry, Kind::Service, What::End).unwrap();
        new
    };
    assert_eq!(list(&mut registry, &["a", "b", "c"]), 3);
    assert_eq!(list(&mut registry, &["a", "b", "c"]), 0);
    assert_eq!(list(&mut registry, &["a", "b"]), 0);
    assert_eq!(known(&registry), ["a", "b"]);
    // Another problem is news; and one that the types do not find is one, too.
    tell(&mut registry, Kind::Service, What::Unreadable(unreadable("a", "more"))).unwrap_err();
    let object = |name: &str, kind: &str| json!({"metadata": {"name": name, "namespace": "default"}, "spec": {"type": kind, "externalName": "a b"}});
    let err =
        tell(&mut registry, Kind::Service, there(Kind::Service, object("d", "ExternalName"))).unwrap_err();
    assert!(err.problem.contains("spec.externalName"), "{err}");
    assert_eq!(known(&registry), ["a", "b", "d"]);
    tell(&mut registry, Kind::Service, there(Kind::Service, object("d", "ClusterIP"))).unwrap();
    let gone = Kind::Service.deserialize(object("a", "")).unwrap();
    tell(&mut registry, Kind::Service, What::Gone(Box::new(gone))).unwrap();
    assert_eq!(known(&registry), ["b"]);
    let many: Vec<String> = (0..2_000).map(|n| format!("s{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert!(list(&mut registry, &many) < 1_000);
    assert!(registry.has_more_unreadable() && known(&registry).len() <= 1_000);
}
