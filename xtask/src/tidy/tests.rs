use super::{Rule::*, *};

/// The lines and rules that a file breaks.
fn broken(file: &str, text: &str) -> Vec<(usize, Rule)> {
    let mut found = check(file, text);
    found.sort();
    found.into_iter().map(|violation| (violation.line, violation.rule)).collect()
}

#[test]
fn a_module_may_use_its_own_layer_and_those_below() {
    let text = "use crate::model::Graph;\nuse crate::render::yaml;\nfn f() { crate::heads::parse() }\n";
    assert_eq!(broken("observer/src/plan.rs", text), []);
    assert_eq!(broken("observer/src/main.rs", "use sidescope::cli;\nfn main() {}\n"), []);
}

#[test]
fn a_module_may_not_use_a_layer_above() {
    for (text, line) in [
        ("\nuse crate::probes::Probes;\n", 2),
        ("use crate::{\n    model::Graph,\n    probes::{self, Probes},\n};\n", 3),
        ("fn f() {\n    println!(\"{}\", crate::observe::NAME);\n}\n", 2),
        ("use super::cli;\n", 1),
        ("pub(in crate::observe) fn f() {}\n", 1),
    ] {
        let found = broken("observer/src/plan.rs", text);
        assert!(
            !found.is_empty() && found.iter().all(|found| *found == (line, Layering)),
            "{text}: {found:?}"
        );
    }
}

#[test]
fn super_within_a_module_is_not_the_root() {
    assert_eq!(broken("observer/src/plan/steps.rs", "use super::cli;\n"), []);
    assert_eq!(broken("observer/src/plan/steps.rs", "use super::super::cli;\n"), [(1, Layering)]);
}

#[test]
fn every_module_needs_a_layer() {
    assert_eq!(broken("observer/src/surprise.rs", "fn f() {}\n"), [(1, Layering)]);
    assert_eq!(broken("observer/src/surprise/part.rs", "fn f() {}\n"), [(1, Layering)]);
    assert_eq!(broken("observer/src/plan.rs", "use crate::Surprise;\n"), [(1, Layering)]);
    assert_eq!(broken("observer/src/lib.rs", "pub mod model;\n"), []);
}

#[test]
fn pure_modules_do_no_io_and_read_no_clock() {
    for text in [
        "use tokio::sync::mpsc;\n",
        "use std::{fs, net::IpAddr};\n",
        "use ::std::fs;\n",
        "fn f() { let _ = ::std::fs::read(\"x\"); }\n",
        "fn f() { std::fs::read(\"x\").map(drop) }\n",
        "fn f() { let _ = std::time::Instant::now(); }\n",
        "fn f() { let _ = vec![SystemTime::now()]; }\n",
        "use aya;\n",
    ] {
        assert_eq!(broken("observer/src/plan.rs", text), [(1, Pure)], "{text}");
        assert_eq!(broken("observer/src/observe.rs", text), [], "{text}");
    }
    assert_eq!(
        broken("observer/src/plan.rs", "//! Not tokio::sync, not std::fs.\nuse std::time::Instant;\n"),
        []
    );
    assert_eq!(
        broken("observer/src/plan.rs", "const X: &str = \"tokio::sync\";\nfn f(tokio: u8) -> u8 { tokio }\n"),
        []
    );
}

#[test]
fn tests_in_a_file_are_free() {
    let text = "fn f() {}\n\n#[cfg(test)]\nmod tests {\n    use crate::probes::P;\n    fn g() { std::fs::read(\"x\").unwrap(); }\n}\n";
    assert_eq!(broken("observer/src/plan.rs", text), []);
    assert_eq!(broken("observer/src/plan.rs", &text.replace("#[cfg(test)]\n", "")).len(), 3);
    // What follows a test module is not a test.
    assert_eq!(
        broken("observer/src/plan.rs", "#[cfg(test)]\nmod tests;\nfn f() { g().unwrap() }\n"),
        [(3, Unwrap)]
    );
}

#[test]
fn unsafe_stands_only_at_the_kernels_interface() {
    let text = "fn f() {\n    unsafe { g() }\n}\n";
    for file in [
        "common/src/lib.rs",
        "observer-ebpf/src/main.rs",
        "observer/src/probes.rs",
        "observer/src/probes/maps.rs",
    ] {
        assert_eq!(broken(file, text), [], "{file}");
    }
    for file in ["observer/src/plan.rs", "xtask/src/main.rs", "tests/src/lib.rs"] {
        assert_eq!(broken(file, text), [(2, Unsafe)], "{file}");
    }
    assert_eq!(broken("observer/src/plan.rs", "#![allow(unsafe_code)] // unsafe\n"), []);
}

#[test]
fn long_files_count_without_their_tests() {
    let line = "fn f() {}\n";
    let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", line.repeat(500));
    assert_eq!(broken("xtask/src/a.rs", &format!("{}{tests}", line.repeat(400))), []);
    assert_eq!(broken("xtask/src/a.rs", &format!("{}{tests}", line.repeat(401))), [(1, Length)]);
    assert_eq!(broken("observer/src/plan/tests.rs", &line.repeat(401)), []);
}

#[test]
fn unwrap_is_for_tests() {
    assert_eq!(broken("xtask/src/a.rs", "fn f() {\n    g()\n        .unwrap();\n}\n"), [(3, Unwrap)]);
    assert_eq!(broken("xtask/src/a.rs", "fn f() { g().unwrap_or(1); }\n// .unwrap()\n"), []);
    assert_eq!(broken("tests/src/a.rs", "fn f() { g().unwrap(); }\n"), []);
}

#[test]
fn nothing_is_left_open_and_no_machine_is_named() {
    let mark = concat!("TO", "DO");
    assert_eq!(broken("deploy/values.yaml", &format!("a: 1\n# {mark}: more\n")), [(2, LeftOpen)]);
    assert_eq!(broken("deploy/values.yaml", &format!("{mark}S: 1\n")), []);
    assert_eq!(broken("xtask/src/a.rs", "fn f() {\n    todo!()\n}\n"), [(2, LeftOpen)]);
    let path = concat!("/ro", "ot/x");
    assert_eq!(broken("README.md", &format!("see {path}\n")), [(1, MachinePath)]);
}

#[test]
fn crates_depend_one_way_and_inherit_the_lints() {
    let manifest =
        |name: &str, rest: &str| format!("[package]\nname = \"{name}\"\n{rest}[lints]\nworkspace = true\n");
    let tests_on_observer = manifest("sidescope-tests", "[dependencies]\nsidescope.workspace = true\n");
    assert_eq!(broken("tests/Cargo.toml", &tests_on_observer), []);
    for rest in [
        "[dependencies]\nsidescope.workspace = true\n",
        "[build-dependencies]\nsidescope = { path = \"../observer\" }\n",
        "[dev-dependencies]\nx = { path = \"../observer\", package = \"sidescope\" }\n",
        "[target.'cfg(unix)'.dependencies]\nsidescope.workspace = true\n",
    ] {
        assert_eq!(broken("xtask/Cargo.toml", &manifest("xtask", rest)).len(), 1, "{rest}");
    }
    let backwards = manifest("sidescope", "[dependencies]\nsidescope-tests.workspace = true\n");
    assert_eq!(broken("observer/Cargo.toml", &backwards), [(4, Dependencies)]);
    assert_eq!(broken("new/Cargo.toml", &manifest("new", "")), [(2, Dependencies)]);

    assert_eq!(broken("xtask/Cargo.toml", "[package]\nname = \"xtask\"\n"), [(1, Lints)]);
    assert_eq!(
        broken("xtask/Cargo.toml", "[package]\nname = \"xtask\"\n[lints.rust]\nx = \"deny\"\n"),
        [(1, Lints)]
    );
    let ebpf = "[package]\nname = \"sidescope-ebpf\"\n[workspace]\n[lints.rust]\nx = \"deny\"\n";
    assert_eq!(broken("observer-ebpf/Cargo.toml", ebpf), []);
}

#[test]
fn a_file_that_cannot_be_read_is_a_violation() {
    assert_eq!(broken("xtask/src/a.rs", "fn f() {\n"), [(1, Readable)]);
    assert_eq!(broken("xtask/Cargo.toml", "[package\n"), [(1, Readable)]);
}

#[test]
fn a_violation_says_where_and_which_rule() {
    let found = check("observer/src/plan.rs", "\nuse crate::cli;\n");
    assert_eq!(
        found[0].to_string(),
        "observer/src/plan.rs:2: Layering: Pure module `plan` uses `cli` of layer Wiring"
    );
}
