//! What the user gives, or the machine, does not allow it: exit code 2, a message that says what and where, and earlier results
//! as they were.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result};
use sidescope_tests::Bed;
use tempfile::TempDir;

use crate::fixture::{files, sidescope};

/// A pod, without which nothing can be told, and a Service that a test may go on with.
const SERVICE: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop}\n---\n\
     apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n";

const EARLIER_GRAPH: &str = r#"{"version": 1, "workloads": [], "unresolved": []}"#;

const EARLIER_SIDECAR: &str = "\
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: web, namespace: shop, labels: {app.kubernetes.io/managed-by: sidescope}}
spec: {workloadSelector: {labels: {app: web}}, egress: [{hosts: ['*/api.shop.svc.cluster.local']}]}
";

/// A folder with an inventory and earlier results.
struct Setup {
    folder: TempDir,
}

impl Setup {
    fn new(inventory: &str) -> Result<Self> {
        let setup = Self { folder: tempfile::tempdir()? };
        fs::write(setup.inventory(), inventory)?;
        let sidecars = setup.out().join("sidecars/shop");
        fs::create_dir_all(&sidecars)?;
        fs::write(setup.out().join("graph.json"), EARLIER_GRAPH)?;
        fs::write(sidecars.join("web.yaml"), EARLIER_SIDECAR)?;
        Ok(setup)
    }

    fn inventory(&self) -> PathBuf {
        self.folder.path().join("inventory.yaml")
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    /// Command line of a watch that would end by itself.
    fn args(&self) -> Vec<String> {
        let path = |path: PathBuf| path.display().to_string();
        let own =
            ["observe", "--for", "1ms", "--inventory", &path(self.inventory()), "--out", &path(self.out())];
        own.map(str::to_owned).to_vec()
    }

    /// Runs a command that must fail for something that the user can change; gives what it says.
    fn refused(&self, command: &mut Command) -> Result<String> {
        let before = files(&self.out())?;
        let output = command.output().with_context(|| format!("{command:?}"))?;
        let said = said(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert_eq!(files(&self.out())?, before, "{said}");
        assert!(said.lines().any(|line| line.starts_with("sidescope: ")), "{said}");
        Ok(said)
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn says(said: &str, words: &[&str]) {
    let line = said.lines().find(|line| line.starts_with("sidescope: ")).unwrap_or_default();
    for word in words {
        assert!(line.contains(word), "no `{word}` in: {line}");
    }
}

fn inventory_is_refused(inventory: &str, words: &[&str]) -> Result<()> {
    let setup = Setup::new(inventory)?;
    let said = setup.refused(Command::new(sidescope()?).args(setup.args()))?;
    says(&said, &["inventory.yaml"]);
    says(&said, words);
    Ok(())
}

#[test]
fn a_wrong_object_is_named_with_file_and_field() -> Result<()> {
    let pod =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web-1, namespace: shop}\nstatus: {podIP: 10.0.0.300}\n";
    inventory_is_refused(pod, &["Pod", "shop/web-1", "status.podIP", "10.0.0.300"])?;
    let nameless = "apiVersion: v1\nkind: Service\nmetadata: {namespace: shop}\nspec: {}\n";
    inventory_is_refused(nameless, &["Service", "document 1", "field metadata", "`name`"])?;
    let service = format!("{SERVICE}spec: {{clusterIP: here}}\n");
    inventory_is_refused(&service, &["Service", "shop/web", "spec.clusterIP", "here"])?;
    inventory_is_refused("kind: Service\n", &["apiVersion"])
}

#[test]
fn broken_yaml_is_named_with_its_line() -> Result<()> {
    inventory_is_refused(&format!("{SERVICE}---\nkind: [\n\"\n"), &["inventory.yaml: line ", "YAML"])?;
    inventory_is_refused("apiVersion: v1\nkind: Service\n  spec: 1\n", &["inventory.yaml: line 3:"])
}

#[test]
fn an_inventory_that_is_not_there_or_empty_is_named() -> Result<()> {
    let setup = Setup::new("")?;
    fs::remove_file(setup.inventory())?;
    let mut missing = Command::new(sidescope()?);
    says(&setup.refused(missing.args(setup.args()))?, &["inventory.yaml", "No such file"]);
    fs::write(setup.inventory(), "kind: List\napiVersion: v1\nitems: []\n")?;
    let mut nothing = Command::new(sidescope()?);
    says(
        &setup.refused(nothing.args(setup.args()))?,
        &["inventory.yaml", "holds no Pod", "kubectl get namespaces,pods"],
    );
    fs::remove_file(setup.inventory())?;
    fs::create_dir(setup.inventory())?;
    let mut empty = Command::new(sidescope()?);
    says(
        &setup.refused(empty.args(setup.args()))?,
        &["inventory.yaml", "directory without", "kubectl get namespaces,pods", "inventory.yaml/mesh.yaml"],
    );
    Ok(())
}

#[test]
fn an_unknown_kind_is_skipped_with_a_warning_and_counted() -> Result<()> {
    let bed = Bed::new()?;
    let object =
        |name| format!("apiVersion: example.org/v1\nkind: Widget\nmetadata: {{name: {name}}}\n---\n");
    let setup = Setup::new(&format!("{}{}{SERVICE}", object("a"), object("b")))?;
    let mut command = Command::new(sidescope()?);
    let output = command.args(setup.args()).arg("--cgroup").arg(bed.cgroup()).output()?;
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    let warning = said.lines().find(|line| line.contains("Widget")).context("no warning")?;
    assert!(warning.contains("WARN") && warning.contains("count=2"), "{warning}");
    assert_ne!(fs::read_to_string(setup.out().join("graph.json"))?, "earlier");
    bed.end()
}

#[test]
fn another_user_than_root_is_told_what_is_needed() -> Result<()> {
    let bed = Bed::new()?;
    let setup = Setup::new(SERVICE)?;
    // In a place that everybody can read, writable results included.
    let binary = setup.folder.path().join("sidescope");
    // Not by this process: what another test starts meanwhile would hold the copy open for writing, and what is cannot be run.
    let copied = Command::new("cp").arg(sidescope()?).arg(&binary).status()?;
    assert!(copied.success());
    let chmod = Command::new("chmod").args(["-R", "a+rwX"]).arg(setup.folder.path()).status()?;
    assert!(chmod.success());
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]).arg(&binary);
    command.args(setup.args()).arg("--cgroup").arg(bed.cgroup());
    says(&setup.refused(&mut command)?, &["root", "BPF", "NET_ADMIN"]);
    bed.end()
}

#[test]
fn what_is_no_cgroup2_is_refused() -> Result<()> {
    let setup = Setup::new(SERVICE)?;
    let other = setup.folder.path().display().to_string();
    let mut command = Command::new(sidescope()?);
    command.args(setup.args()).args(["--cgroup", &other]);
    says(&setup.refused(&mut command)?, &[&other, "cgroup2", "Leave --cgroup out", "findmnt -t cgroup2"]);
    let mut command = Command::new(sidescope()?);
    command.args(setup.args()).args(["--cgroup", "/no/such/cgroup"]);
    says(&setup.refused(&mut command)?, &["/no/such/cgroup", "No such file"]);

    // Without any: the mounts are the child's own.
    let script = r#"grep ' cgroup2 ' /proc/self/mounts | cut -d ' ' -f 2 | while read -r path; do umount -l "$path"; done
                    exec "$@""#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(sidescope()?).args(setup.args());
    says(&setup.refused(&mut command)?, &["no cgroup2", "mount -t cgroup2"]);
    Ok(())
}

#[test]
fn a_cgroup_without_anybody_is_told_and_what_to_do() -> Result<()> {
    let bed = Bed::new()?;
    let setup = Setup::new(SERVICE)?;
    let mut command = Command::new(sidescope()?);
    let output = command.args(setup.args()).arg("--cgroup").arg(bed.pods_cgroup()).output()?;
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    for (warning, remedy) in [
        ("no process is in the cgroup", "leave --cgroup out"),
        ("no pod of the inventory was watched", "name a cgroup with pods"),
    ] {
        let line = said.lines().find(|line| line.contains(warning)).context(said.clone())?;
        assert!(line.contains("WARN") && line.contains(remedy), "{line}");
    }
    bed.end()
}

#[test]
fn a_kernel_that_is_too_old_is_told_its_version() -> Result<()> {
    let bed = Bed::new()?;
    let setup = Setup::new(SERVICE)?;
    let mut command = Command::new("setarch");
    command
        .args(["--uname-2.6", "--"])
        .arg(sidescope()?)
        .args(setup.args())
        .arg("--cgroup")
        .arg(bed.cgroup());
    says(&setup.refused(&mut command)?, &["this kernel is 2.6.", "needs 5.10 or later"]);
    bed.end()
}

#[test]
fn an_output_folder_that_cannot_be_written_is_refused_before_the_watch() -> Result<()> {
    let bed = Bed::new()?;
    let setup = Setup::new(SERVICE)?;
    let refused = |out: &Path| {
        let mut command = Command::new(sidescope()?);
        command.args(["observe", "--for", "1ms", "--cgroup"]).arg(bed.cgroup());
        command.arg("--inventory").arg(setup.inventory()).arg("--out").arg(out);
        setup.refused(&mut command)
    };
    let file = setup.inventory();
    says(&refused(&file)?, &["inventory.yaml is a file", "takes a directory"]);
    says(&refused(&file.join("below"))?, &["cannot write", "inventory.yaml/below"]);
    // Not even root can write there.
    says(&refused(Path::new("/proc/sidescope"))?, &["cannot write", "/proc/sidescope", "Choose an --out"]);

    let handmade = setup.out().join("sidecars/shop/handmade.yaml");
    fs::write(&handmade, "kind: Sidecar\n")?;
    says(&refused(&setup.out())?, &["handmade.yaml", "was not written by Sidescope", "another --out"]);
    bed.end()
}
