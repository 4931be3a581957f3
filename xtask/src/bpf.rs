//! How the kernel programs are compiled, in one place: which compilers can do it, where the linker is, and the call of cargo.
//!
//! Belongs to `xtask` and, by way of `bpf_build.rs`, to the build scripts, so that what `cargo xtask setup` installs is what a
//! build looks for. It uses the standard library only: a build script should not wait for other crates.

use std::{
    env,
    ffi::OsStr,
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

use super::cache_dir::cache_dir;

/// The variable that forces one [`Compiler`] by its name.
pub(crate) const COMPILER_VAR: &str = "SIDESCOPE_BPF_TOOLCHAIN";

/// The compiler of the package `rustc-web`.
pub(crate) const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
pub(crate) const DEBIAN_CLIPPY: &str = "/usr/bin/cargo-clippy";
const DEBIAN_CORE: &str = "/usr/lib/rustlib/bpfel-unknown-none/lib";
const DEBIAN_SOURCE: &str = "/usr/lib/rustlib/src/rust/library/core/Cargo.toml";

/// A compiler that has, or can make, a `core` for the BPF targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compiler {
    /// Debian's `rustc-web` with the `core` that `libstd-rust-web-dev-bpf` brings.
    Debian,
    /// The same, but `core` is built from `rust-web-src`: what nightly does, on a machine that has no rust-src for it.
    DebianBuildStd,
    /// rustup's nightly with the component rust-src.
    Nightly,
}

impl Compiler {
    /// Those that are taken without being asked for. Debian's comes first because its LLVM is the one that the linker is
    /// built with, while a nightly may be ahead of it.
    const BY_DEFAULT: [Self; 2] = [Self::Debian, Self::Nightly];

    fn name(self) -> &'static str {
        match self {
            Self::Debian => "debian",
            Self::DebianBuildStd => "debian-build-std",
            Self::Nightly => "nightly",
        }
    }

    /// The one called `wanted`, or else the first that this machine has.
    pub(crate) fn choose(wanted: Option<&OsStr>) -> Result<Self, Missing> {
        let all = [Self::Debian, Self::DebianBuildStd, Self::Nightly];
        let Some(wanted) = wanted.filter(|name| !name.is_empty()) else {
            return Self::BY_DEFAULT.into_iter().find(|compiler| compiler.is_here()).ok_or(Missing::Compiler);
        };
        let compiler = all
            .into_iter()
            .find(|compiler| wanted == compiler.name())
            .ok_or_else(|| Missing::Unknown(wanted.to_string_lossy().into_owned()))?;
        if compiler.is_here() { Ok(compiler) } else { Err(Missing::Wanted(compiler)) }
    }

    /// Whether everything that this way of building needs is on the machine, the linker aside.
    pub(crate) fn is_here(self) -> bool {
        let debian = || Path::new(DEBIAN_RUSTC).exists() && Path::new(DEBIAN_CORE).exists();
        match self {
            Self::Debian => debian(),
            Self::DebianBuildStd => debian() && Path::new(DEBIAN_SOURCE).exists(),
            Self::Nightly => {
                let sysroot =
                    Command::new("rustup").args(["run", "nightly", "rustc", "--print=sysroot"]).output();
                sysroot.is_ok_and(|output| {
                    let sysroot = String::from_utf8_lossy(&output.stdout);
                    let source =
                        Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml");
                    output.status.success() && source.exists()
                })
            }
        }
    }

    /// Its `cargo SUBCOMMAND`, without what the cargo that runs us has set for its own compiler.
    fn cargo(self, subcommand: &str) -> Command {
        let mut cargo = match self {
            Self::Debian | Self::DebianBuildStd => {
                let program = if subcommand == "clippy" {
                    DEBIAN_CLIPPY.into()
                } else {
                    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
                };
                let mut cargo = Command::new(program);
                // aya-ebpf needs unstable features, which a stable compiler has but keeps locked.
                cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                cargo
            }
            Self::Nightly => {
                let mut rustup = Command::new("rustup");
                rustup.args(["run", "nightly", "cargo"]).env_remove("RUSTC").env_remove("CARGO");
                rustup
            }
        };
        cargo.env_remove("RUSTC_WORKSPACE_WRAPPER").arg(subcommand);
        cargo
    }

    fn builds_core(self) -> bool {
        matches!(self, Self::DebianBuildStd | Self::Nightly)
    }
}

/// What is not on this machine.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// No compiler at all.
    Compiler,
    /// The compiler that [`COMPILER_VAR`] asks for.
    Wanted(Compiler),
    /// [`COMPILER_VAR`] names no compiler that we know.
    Unknown(String),
    /// bpf-linker.
    Linker,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compiler => f.write_str(
                "no compiler for the kernel programs: neither Debian's rustc-web with libstd-rust-web-dev-bpf, nor rustup's \
                 nightly with rust-src",
            ),
            Self::Wanted(Compiler::Nightly) => {
                write!(f, "{COMPILER_VAR} asks for nightly, but rustup has no nightly with the component rust-src")
            }
            Self::Wanted(Compiler::Debian) => {
                write!(f, "{COMPILER_VAR} asks for debian, but rustc-web or libstd-rust-web-dev-bpf is not installed")
            }
            Self::Wanted(Compiler::DebianBuildStd) => write!(
                f,
                "{COMPILER_VAR} asks for debian-build-std, but rustc-web, libstd-rust-web-dev-bpf or rust-web-src is not \
                 installed"
            ),
            Self::Unknown(name) => {
                write!(f, "{COMPILER_VAR} is `{name}`: it takes nightly, debian or debian-build-std")
            }
            Self::Linker => match tools_dir() {
                Some(tools) => {
                    write!(f, "no bpf-linker, neither on PATH nor in {}", tools.join("bin").display())
                }
                None => f.write_str("no bpf-linker on PATH"),
            },
        }
    }
}

impl std::error::Error for Missing {}

/// Where tools are kept that cargo builds for us.
pub(crate) fn tools_dir() -> Option<PathBuf> {
    Some(cache_dir()?.join("tools"))
}

/// The executable `name` on PATH or among our own tools.
pub(crate) fn tool(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let own = tools_dir().map(|tools| tools.join("bin"));
    env::split_paths(&path).chain(own).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// The linker of the kernel programs.
pub(crate) fn linker() -> Result<PathBuf, Missing> {
    tool("bpf-linker").ok_or(Missing::Linker)
}

/// One compilation of a crate of kernel programs.
pub(crate) struct Compilation<'a> {
    pub(crate) compiler: Compiler,
    pub(crate) linker: &'a Path,
    /// The folder of the crate.
    pub(crate) source: &'a Path,
    /// A folder of its own: the cargo that runs us holds the lock of its target folder.
    pub(crate) target_dir: &'a Path,
    /// The processor of the machine that will load the object, as rustc calls it.
    pub(crate) arch: &'a str,
    pub(crate) big_endian: bool,
}

impl Compilation<'_> {
    fn target(&self) -> &'static str {
        if self.big_endian { "bpfeb-unknown-none" } else { "bpfel-unknown-none" }
    }

    /// `cargo SUBCOMMAND` over the kernel programs.
    pub(crate) fn cargo(&self, subcommand: &str) -> Command {
        let mut cargo = self.compiler.cargo(subcommand);
        let flags = [
            format!("--cfg=bpf_target_arch=\"{}\"", self.arch),
            "-Cdebuginfo=2".to_owned(),
            "-Clink-arg=--btf".to_owned(),
            format!("-Clinker={}", self.linker.display()),
        ];
        cargo
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            .current_dir(self.source)
            .args(["--release", "--target", self.target()])
            .arg("--target-dir")
            .arg(self.target_dir);
        if self.compiler.builds_core() {
            cargo.arg("-Zbuild-std=core");
        }
        cargo
    }

    /// Where `cargo build` leaves the object of the crate's binary `name`.
    pub(crate) fn object(&self, name: &str) -> PathBuf {
        self.target_dir.join(self.target()).join("release").join(name)
    }
}
