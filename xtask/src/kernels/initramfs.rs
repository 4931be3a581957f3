//! The file system that a kernel boots into: the programs under test, what they call, and a script that runs them.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs::{self, File},
    io::Write as _,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use super::{Program, READ_BY_TESTS, TESTS, command_path, fetch::Kernel, modules, results::MARK, under_test};
use crate::command::{self, root_dir, shown, stdout};

/// What the test bed and its tests call. The real programs: busybox has some of them too, and less able.
const COMMANDS: [&str; 29] = [
    "bpftool",
    "cat",
    "chmod",
    "cp",
    "cut",
    "echo",
    "env",
    "false",
    "grep",
    "id",
    "ip",
    "ip6tables",
    "ip6tables-restore",
    "ip6tables-save",
    "iptables",
    "iptables-restore",
    "iptables-save",
    "mkdir",
    "nsenter",
    "readlink",
    "setpriv",
    "setsid",
    "sh",
    "sleep",
    "ss",
    "true",
    "umount",
    "unshare",
    "mount",
];
/// Time for one test binary.
const PROGRAM_SECONDS: u32 = 3600;
/// Tests that run at once: they wait more than they work.
const THREADS: u32 = 3;
/// By how much the tests' own limits are longer on emulated processors: see `tests/src/wait.rs`.
const PATIENCE: (&str, u32) = ("SIDESCOPE_TEST_PATIENCE", 6);

/// Makes the image; returns its path.
pub(super) fn make(kernel: &Kernel, rows: &[&Program]) -> Result<PathBuf> {
    let dir = root_dir().join("target/kernels").join(kernel.version.name);
    let root = dir.join("root");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))?;
    }
    for folder in ["proc", "sys", "dev", "tmp", "run", "etc", "modules"] {
        fs::create_dir_all(root.join(folder))?;
    }
    let image = Image { root };
    for program in under_test().iter().chain(rows.iter().map(|row| &row.path)) {
        image.add_program(program)?;
    }
    for name in COMMANDS {
        image.add_command(&command_path(name)?)?;
    }
    image.add(&command_path("busybox")?)?;
    fs::create_dir_all(image.place(&root_dir().join(TESTS))?)?;
    for folder in READ_BY_TESTS {
        image.add_folder(&root_dir().join(folder))?;
    }
    image.add_firewall_extensions()?;
    let modules = image.add_modules(kernel)?;
    image.write_init(&modules, rows)?;
    image.pack(&dir.join("image.cpio"))
}

struct Image {
    root: PathBuf,
}

impl Image {
    fn place(&self, path: &Path) -> Result<PathBuf> {
        let place = self.root.join(path.strip_prefix("/").context("a path that is not absolute")?);
        let folder = place.parent().context("a path without a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(place)
    }

    /// A file under its own path, with the libraries that it is linked with.
    fn add(&self, path: &Path) -> Result<()> {
        let place = self.place(path)?;
        fs::copy(path, &place).with_context(|| format!("cannot copy {}", path.display()))?;
        self.add_libraries(path)
    }

    fn add_libraries(&self, path: &Path) -> Result<()> {
        // Fails for what is linked statically.
        for library in stdout(Command::new("ldd").arg(path)).iter().flat_map(|text| libraries(text)) {
            let place = self.place(&library)?;
            if !place.exists() {
                fs::copy(&library, &place).with_context(|| format!("cannot copy {}", library.display()))?;
            }
        }
        Ok(())
    }

    /// A program of ours, without what only a debugger needs: it would fill the machine's memory.
    fn add_program(&self, path: &Path) -> Result<()> {
        let place = self.place(path)?;
        command::run(Command::new("strip").arg("-o").arg(&place).arg(path))?;
        self.add_libraries(path)
    }

    /// A command, under the name by which it is called: some are one program under many names.
    fn add_command(&self, path: &Path) -> Result<()> {
        let real = fs::canonicalize(path).with_context(|| format!("cannot find {}", path.display()))?;
        self.add(&real)?;
        let name = path.file_name().context("a command without a name")?;
        let link = self.place(&Path::new("/bin").join(name))?;
        if real != Path::new("/bin").join(name) && !link.exists() {
            symlink(&real, &link).with_context(|| format!("cannot make {}", link.display()))?;
        }
        Ok(())
    }

    /// The files of a folder, at their own path.
    fn add_folder(&self, path: &Path) -> Result<()> {
        for entry in fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))? {
            let file = entry?.path();
            let place = self.place(&file)?;
            fs::copy(&file, &place).with_context(|| format!("cannot copy {}", file.display()))?;
        }
        Ok(())
    }

    /// Plug-ins of iptables; they are not linked but loaded by name.
    fn add_firewall_extensions(&self) -> Result<()> {
        for folder in ["/usr/lib/x86_64-linux-gnu/xtables", "/usr/lib64/xtables", "/usr/lib/xtables"] {
            for entry in fs::read_dir(folder).into_iter().flatten() {
                self.add(&entry?.path())?;
            }
        }
        Ok(())
    }

    /// Copies the modules; returns their names in the order in which they go in.
    fn add_modules(&self, kernel: &Kernel) -> Result<Vec<String>> {
        let dep = kernel.modules.join("modules.dep");
        let dep = fs::read_to_string(&dep).with_context(|| format!("cannot read {}", dep.display()))?;
        let mut names = Vec::new();
        for file in modules::in_order(&dep, &modules::WANTED) {
            let from = kernel.modules.join(&file);
            let name = file.rsplit('/').next().unwrap_or(&file).trim_end_matches(".xz").to_owned();
            let place = self.root.join("modules").join(&name);
            if file.ends_with(".xz") {
                let out = File::create(&place).with_context(|| format!("cannot make {}", place.display()))?;
                command::run(Command::new("xz").args(["--decompress", "--stdout"]).arg(&from).stdout(out))?;
            } else {
                fs::copy(&from, &place).with_context(|| format!("cannot copy {}", from.display()))?;
            }
            names.push(name);
        }
        Ok(names)
    }

    fn write_init(&self, modules: &[String], rows: &[&Program]) -> Result<()> {
        let busybox = command_path("busybox")?;
        let path = self.root.join("init");
        fs::write(&path, init(&busybox, modules, rows))
            .with_context(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        fs::write(self.root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n")?;
        Ok(())
    }

    fn pack(&self, to: &Path) -> Result<PathBuf> {
        let mut files = BTreeSet::new();
        list(&self.root, Path::new("."), &mut files)?;
        let out = File::create(to).with_context(|| format!("cannot make {}", to.display()))?;
        let mut cpio = Command::new("cpio");
        cpio.args(["--create", "--format=newc", "--quiet", "--owner=0:0"]).current_dir(&self.root);
        let mut child = cpio.stdin(Stdio::piped()).stdout(out).spawn().context("cannot start cpio")?;
        let mut pipe = child.stdin.take().context("cpio has no standard input")?;
        for file in files {
            writeln!(pipe, "{}", file.display()).context("cannot write to cpio")?;
        }
        drop(pipe);
        let status = child.wait()?;
        ensure!(status.success(), "`{}`: {status}", shown(&cpio));
        Ok(to.to_owned())
    }
}

/// All below a folder, each after the folder that it is in.
fn list(root: &Path, folder: &Path, files: &mut BTreeSet<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(root.join(folder))? {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            list(root, &path, files)?;
        }
        files.insert(path);
    }
    Ok(())
}

/// The files in what ldd prints.
fn libraries(ldd: &str) -> Vec<PathBuf> {
    ldd.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

/// The script that the kernel starts: the smallest system that the test bed can live in, then the rows, then the end.
fn init(busybox: &Path, modules: &[String], rows: &[&Program]) -> String {
    let busybox = busybox.display();
    let (patience, times) = PATIENCE;
    let mut script = format!(
        "#!{busybox} sh\nexport PATH=/bin:/usr/bin:/usr/sbin:/sbin HOME=/tmp RUST_BACKTRACE=0 SIDESCOPE_BIN={}\nexport {patience}={times}\nb={busybox}\n\
         $b mount -t proc proc /proc\n$b mount -t sysfs sys /sys\n$b mount -t devtmpfs dev /dev\n\
         $b mount -t cgroup2 cgroup2 /sys/fs/cgroup\n$b mount -t bpf bpf /sys/fs/bpf\n",
        under_test()[0].display()
    );
    for module in modules {
        // Writing to a String does not fail.
        let _ = writeln!(script, "$b insmod /modules/{module} || echo cannot insert {module}");
    }
    script.push_str("$b ip link set lo up\n");
    for Program { name, path, skip } in rows {
        let path = path.display();
        let skip: String = skip.iter().map(|test| format!(" --skip {test}")).collect();
        // Into a file first: messages of the kernel would stand in the midst of lines.
        let _ = write!(
            script,
            "read -r start rest </proc/uptime\n\
             $b timeout -s KILL {PROGRAM_SECONDS} {path} --test-threads={THREADS}{skip} >/tmp/said 2>&1\ncode=$?\n\
             read -r end rest </proc/uptime\n\
             echo '{MARK} begin {name}'\n$b cat /tmp/said\n\
             echo \"{MARK} end {name} $code $((${{end%.*}} - ${{start%.*}}))\"\n"
        );
    }
    script.push_str("$b poweroff -f\n");
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_the_absolute_paths_that_ldd_prints() {
        let ldd = "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/libc.so.6 (0x2)\n\t/lib64/ld-linux-x86-64.so.2 (0x3)\n";
        assert_eq!(libraries(ldd), ["/lib/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from));
        assert!(libraries("\tstatically linked\n").is_empty());
    }

    #[test]
    fn modules_go_in_before_the_rows_and_each_row_tells_its_exit_code() {
        let row = Program { name: "bed", path: PathBuf::from("/t/bed-1"), skip: &["slow"] };
        let script = init(Path::new("/bin/busybox"), &["veth.ko".to_owned()], &[&row]);
        let at = |text: &str| script.find(text).unwrap_or_else(|| panic!("`{text}` is not in\n{script}"));
        assert!(at("insmod /modules/veth.ko") < at("/t/bed-1 --test-threads=3 --skip slow"));
        assert!(at("begin bed") < at("end bed $code"));
        assert!(script.ends_with("poweroff -f\n"));
    }
}
