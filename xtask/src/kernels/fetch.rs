//! Debian's cloud kernels, unpacked beside the machine's own packages: nothing of it is installed.
//!
//! A second apt configuration with directories of its own reads another release of the mirror that this machine's packages come
//! from.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::Version;
use crate::{
    bpf,
    command::{self, stdout},
};

/// The package that depends on the newest cloud kernel of its release.
const NEWEST: &str = "linux-image-cloud-amd64";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// An unpacked kernel.
pub(crate) struct Kernel {
    pub(crate) version: Version,
    /// As `uname -r` says it.
    pub(crate) release: String,
    pub(crate) image: PathBuf,
    /// The folder with modules.dep.
    pub(crate) modules: PathBuf,
}

/// The kernel in the cache, which is filled where it is not there yet.
pub(crate) fn kernel(version: Version) -> Result<Kernel> {
    let tools =
        bpf::tools_dir().context("neither HOME nor XDG_CACHE_HOME is set: there is no place for kernels")?;
    let dir = tools.with_file_name("kernels").join(version.name);
    if let Some(kernel) = unpacked(version, &dir) {
        return Ok(kernel);
    }
    let _held = hold(&dir.with_file_name(format!("{}.lock", version.name)))?;
    // Another run may have fetched it meanwhile.
    if let Some(kernel) = unpacked(version, &dir) {
        return Ok(kernel);
    }
    download(version, &dir)
        .with_context(|| format!("cannot fetch kernel {} (Debian {})", version.name, version.suite))?;
    unpacked(version, &dir).with_context(|| {
        format!("the package of kernel {} has no vmlinuz or no modules: see {}", version.name, dir.display())
    })
}

/// Waits until no other run fetches the same kernel into this cache. The lock goes with the file, and with the process.
fn hold(lock: &Path) -> Result<File> {
    let held = || {
        lock.parent().map_or(Ok(()), fs::create_dir_all)?;
        let file = File::create(lock)?;
        file.lock().map(|()| file)
    };
    held().with_context(|| format!("cannot take {}", lock.display()))
}

fn unpacked(version: Version, dir: &Path) -> Option<Kernel> {
    let file = fs::read_dir(dir.join("boot")).ok()?.flatten().find_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        name.strip_prefix("vmlinuz-").map(|release| (release.to_owned(), entry.path()))
    });
    let (release, image) = file?;
    let modules = dir.join("lib/modules").join(&release);
    modules.join("modules.dep").exists().then_some(Kernel { version, release, image, modules })
}

fn download(version: Version, dir: &Path) -> Result<()> {
    let mirror = mirror()?;
    let apt = dir.with_file_name(format!("{}.apt", version.name));
    for folder in ["lists/partial", "archives/partial"] {
        fs::create_dir_all(apt.join(folder)).with_context(|| format!("cannot make {}", apt.display()))?;
    }
    let signed = if Path::new(KEYRING).exists() { format!(" signed-by={KEYRING}") } else { String::new() };
    let write = |name: &str, text: String| {
        fs::write(apt.join(name), text).with_context(|| format!("cannot write {}", apt.join(name).display()))
    };
    write("sources.list", format!("deb [arch=amd64{signed}] {mirror} {} main\n", version.suite))?;
    write("status", String::new())?;
    write("apt.conf", configuration(&apt))?;

    let in_apt = |program: &str| {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", apt.join("apt.conf")).env("LC_ALL", "C").current_dir(&apt);
        command
    };
    println!(
        "    kernel {}: download from this machine's Debian mirror into {}",
        version.name,
        dir.display()
    );
    command::run(in_apt("apt-get").args(["-qq", "update"]))?;
    let shown = stdout(in_apt("apt-cache").args(["show", "--no-all-versions", NEWEST]));
    let package =
        shown.and_then(|text| dependency(&text)).with_context(|| format!("the mirror has no {NEWEST}"))?;
    command::run(in_apt("apt-get").args(["-qq", "download", &package]))?;
    let archive = fs::read_dir(&apt)?.flatten().map(|entry| entry.path()).find(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("{package}_")))
    });
    let archive = archive.with_context(|| format!("apt-get has left no archive of {package}"))?;

    // Under its name only when it is whole.
    let partial = dir.with_file_name(format!("{}.partial", version.name));
    for old in [dir, &partial] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| format!("cannot remove {}", old.display()))?;
        }
    }
    command::run(Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(&partial))?;
    // Newer packages have their modules in /usr/lib, the machine would have a link.
    if !partial.join("lib").exists() {
        std::os::unix::fs::symlink("usr/lib", partial.join("lib"))?;
    }
    let release = package.trim_start_matches("linux-image-");
    command::run(Command::new(super::command_path("depmod")?).arg("-b").arg(&partial).arg(release))?;
    fs::rename(&partial, dir).with_context(|| format!("cannot make {}", dir.display()))?;
    fs::remove_dir_all(&apt).with_context(|| format!("cannot remove {}", apt.display()))
}

fn configuration(apt: &Path) -> String {
    let place = apt.display();
    format!(
        "Dir::State \"{place}\";\nDir::State::status \"{place}/status\";\nDir::State::lists \"{place}/lists\";\n\
         Dir::Cache \"{place}\";\nDir::Cache::archives \"{place}/archives\";\n\
         Dir::Etc::sourcelist \"{place}/sources.list\";\nDir::Etc::sourceparts \"-\";\n\
         APT::Architecture \"amd64\";\nAcquire::Languages \"none\";\nAPT::Sandbox::User \"\";\n"
    )
}

/// The mirror of Debian that this machine's packages come from; other releases lie beside this one.
fn mirror() -> Result<String> {
    let format = "$(REPO_URI) $(CODENAME)";
    let wanted = ["Created-By: Packages", "Component: main", "Origin: Debian"];
    let targets = stdout(Command::new("apt-get").args(["indextargets", "--format", format]).args(wanted));
    let found = targets.as_deref().and_then(first_release);
    ensure!(
        found.is_some(),
        "this machine's apt knows no mirror of Debian: unpack the packages linux-image-VERSION-cloud-amd64 yourself, with \
         dpkg-deb --extract and depmod -b, into the folders kernels/VERSION of the cache"
    );
    found.context("checked above")
}

/// The URI of the first line whose suite is a whole release and neither its updates nor its security fixes, which may lie elsewhere.
fn first_release(targets: &str) -> Option<String> {
    targets.lines().find_map(|line| {
        let (uri, codename) = line.split_once(' ')?;
        (!codename.contains('-')).then(|| uri.to_owned())
    })
}

/// The first package that a package depends on.
fn dependency(show: &str) -> Option<String> {
    let depends = show.lines().find_map(|line| line.strip_prefix("Depends: "))?;
    depends.split([' ', ',']).next().filter(|name| !name.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_that_of_a_whole_release() {
        let targets = "http://a/debian-security/ bookworm-security\nhttp://b/debian/ bookworm\n";
        assert_eq!(first_release(targets).as_deref(), Some("http://b/debian/"));
        assert_eq!(first_release("http://a/ bookworm-updates\n"), None);
    }

    #[test]
    fn the_newest_kernel_is_what_the_package_depends_on() {
        let show =
            "Package: linux-image-cloud-amd64\nDepends: linux-image-6.1.0-50-cloud-amd64 (= 6.1.176-1)\n";
        assert_eq!(dependency(show).as_deref(), Some("linux-image-6.1.0-50-cloud-amd64"));
        assert_eq!(dependency("Package: a\n"), None);
    }
}
