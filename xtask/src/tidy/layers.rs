//! The layers of `observer/src`: model <- pure <- io <- wiring.

use super::{Rule, Violation, is_test_file, source::Source};

/// From the bottom to the top; a module uses its own layer and those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Layer {
    Model,
    Pure,
    Io,
    Wiring,
    Main,
}

/// Every module directly in `observer/src`, one line each; its submodules belong to the same layer.
const MODULES: &[(&str, Layer)] = &[
    ("model", Layer::Model),
    //
    ("answers", Layer::Pure),
    ("attended", Layer::Pure),
    ("attribute", Layer::Pure),
    ("authority", Layer::Pure),
    ("binding", Layer::Pure),
    ("certificates", Layer::Pure),
    ("changes", Layer::Pure),
    ("clock", Layer::Pure),
    ("collect", Layer::Pure),
    ("configure", Layer::Pure),
    ("coverage", Layer::Pure),
    ("desk", Layer::Pure),
    ("dns", Layer::Pure),
    ("dns_names", Layer::Pure),
    ("election", Layer::Pure),
    ("heads", Layer::Pure),
    ("held", Layer::Pure),
    ("hpack", Layer::Pure),
    ("http1", Layer::Pure),
    ("interned", Layer::Pure),
    ("inventory", Layer::Pure),
    ("ledger", Layer::Pure),
    ("living", Layer::Pure),
    ("mesh_index", Layer::Pure),
    ("losses", Layer::Pure),
    ("node_pods", Layer::Pure),
    ("objects", Layer::Pure),
    ("older", Layer::Pure),
    ("outbox", Layer::Pure),
    ("owners", Layer::Pure),
    ("plan", Layer::Pure),
    ("proxy_protocol", Layer::Pure),
    ("registry", Layer::Pure),
    ("render", Layer::Pure),
    ("report", Layer::Pure),
    ("service_index", Layer::Pure),
    ("services", Layer::Pure),
    ("sockets", Layer::Pure),
    ("sources", Layer::Pure),
    ("tls", Layer::Pure),
    ("uid_map", Layer::Pure),
    ("wire", Layer::Pure),
    ("workloads", Layer::Pure),
    //
    ("cgroup", Layer::Io),
    ("crd", Layer::Io),
    ("input", Layer::Io),
    ("kube_watch", Layer::Io),
    ("lease", Layer::Io),
    ("namespaces", Layer::Io),
    ("output", Layer::Io),
    ("pod_watch", Layer::Io),
    ("probes", Layer::Io),
    ("progress", Layer::Io),
    ("scan", Layer::Io),
    ("scanner", Layer::Io),
    ("sock_diag", Layer::Io),
    ("store", Layer::Io),
    ("transport", Layer::Io),
    ("trust", Layer::Io),
    //
    ("agent", Layer::Wiring),
    ("aggregator", Layer::Wiring),
    ("cli", Layer::Wiring),
    ("observe", Layer::Wiring),
    ("watch", Layer::Wiring),
    //
    ("main", Layer::Main),
];

/// What a pure module may not name, and why: paths that begin with, or contain, these words.
const IMPURE_CRATES: [&str; 7] = ["aya", "kube", "nix", "procfs", "tokio", "tonic", "tempfile"];
const IMPURE_PATHS: [&[&str]; 7] = [
    &["std", "fs"],
    &["std", "env"],
    &["std", "process"],
    &["std", "net", "TcpStream"],
    &["std", "net", "UdpSocket"],
    &["SystemTime", "now"],
    &["Instant", "now"],
];

fn layer_of(module: &str) -> Option<Layer> {
    MODULES.iter().find(|(name, _)| *name == module).map(|(_, layer)| *layer)
}

pub(super) fn check(file: &str, source: &Source) -> Vec<Violation> {
    let Some(in_crate) = file.strip_prefix("observer/src/").and_then(|file| file.strip_suffix(".rs")) else {
        return Vec::new();
    };
    // lib.rs only declares the modules.
    if in_crate == "lib" || is_test_file(file) {
        return Vec::new();
    }
    let here: Vec<&str> = in_crate.split('/').collect();
    let violation = |line, rule, detail| Violation { file: file.to_owned(), line, rule, detail };
    let Some(layer) = layer_of(here[0]) else {
        let detail =
            format!("module `{}` has no layer: add it to the table in xtask/src/tidy/layers.rs", here[0]);
        return vec![violation(1, Rule::Layering, detail)];
    };

    let mut found = Vec::new();
    for path in &source.paths {
        if let Some(used) = module_used(&path.words, &here) {
            match layer_of(used) {
                None => found.push(violation(
                    path.line,
                    Rule::Layering,
                    format!("`crate::{used}` is no module of the table in xtask/src/tidy/layers.rs"),
                )),
                Some(other) if other > layer => found.push(violation(
                    path.line,
                    Rule::Layering,
                    format!("{layer:?} module `{}` uses `{used}` of layer {other:?}", here[0]),
                )),
                Some(_) => {}
            }
        }
        if layer <= Layer::Pure && is_impure(&path.words) {
            let detail = format!("{layer:?} module `{}` names `{}`", here[0], path.words.join("::"));
            found.push(violation(path.line, Rule::Pure, detail));
        }
    }
    found
}

/// The module of the crate's root that a path leads to, where it leads into this crate by `crate::` or out of its own
/// module by `super::`.
fn module_used<'a>(words: &'a [String], here: &[&str]) -> Option<&'a str> {
    match words.first()?.as_str() {
        "crate" => words.get(1).map(String::as_str),
        "super" => {
            let ups = words.iter().take_while(|word| *word == "super").count();
            // Fewer steps than the module is deep stay within it; a module inside the file adds a step of its own, so
            // a name that is no module is not held against it.
            let target = words.get(ups).filter(|_| ups >= here.len())?;
            layer_of(target).map(|_| target.as_str())
        }
        _ => None,
    }
}

fn is_impure(words: &[String]) -> bool {
    words.first().is_some_and(|first| IMPURE_CRATES.contains(&first.as_str()))
        || IMPURE_PATHS.iter().any(|path| words.windows(path.len()).any(|window| window == *path))
}
