//! A cluster for a person: a process in the background owns it, and a folder says which.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, setsid};
use serde::{Deserialize, Serialize};

use super::cache_dir::cache_dir;
use super::component::Component;
use super::data::write;
use super::{Cluster, Parts};
use crate::bed::{Owner, signals};
use crate::wait::wait_for;

/// How long all of it may take.
const START: Duration = Duration::from_secs(600);
const END: Duration = Duration::from_secs(30);
const OWNER: &str = "owner";
const RECORD: &str = "cluster.json";
const LOG: &str = "log";

/// What a person is told.
#[derive(Serialize, Deserialize)]
struct Record {
    dir: PathBuf,
    kubeconfig: PathBuf,
    xds: u16,
    processes: Vec<Process>,
}

#[derive(Serialize, Deserialize)]
struct Process {
    name: String,
    version: String,
    pid: i32,
    start: u64,
}

/// Starts it, unless it runs, and prints how to reach it.
pub fn up() -> Result<()> {
    let dir = folder()?;
    let _held = hold_folder(&dir)?;
    let mut started = None;
    if !owner(&dir).is_some_and(Owner::is_alive) {
        clear(&dir)?;
        let program = std::env::current_exe().context("cannot find this program")?;
        let log =
            File::create(dir.join(LOG)).with_context(|| format!("cannot write in {}", dir.display()))?;
        let mut command = Command::new(program);
        command.args(["cluster", "hold"]).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        started = Some(command.spawn().context("cannot start the owner of the cluster")?);
    }
    let record = wait_for("the cluster to be ready", START, || {
        if let Some(record) = record(&dir) {
            return Ok(Some(record));
        }
        let is_gone = match &mut started {
            Some(child) => child.try_wait()?.is_some(),
            None => !owner(&dir).is_some_and(Owner::is_alive),
        };
        if is_gone {
            bail!(
                "its owner has ended:\n{}",
                fs::read_to_string(dir.join(LOG)).unwrap_or_default().trim_end()
            );
        }
        Ok(None)
    })?;
    record.print(&mut std::io::stdout().lock())
}

/// Ends it and removes its data; without one it says so.
pub fn down() -> Result<()> {
    let dir = folder()?;
    let _held = hold_folder(&dir)?;
    match owner(&dir).filter(|owner| owner.is_alive()) {
        None => println!("no cluster runs"),
        Some(owner) => {
            // Its children end with it, in order or not.
            for signal in [Signal::SIGTERM, Signal::SIGKILL] {
                kill(Pid::from_raw(owner.pid), signal)
                    .with_context(|| format!("cannot end process {}, the owner of the cluster", owner.pid))?;
                let ended = wait_for("the end of the cluster", END, || Ok((!owner.is_alive()).then_some(())));
                if ended.is_ok() {
                    break;
                }
            }
            println!("the cluster is gone");
        }
    }
    if let Some(left) = record(&dir).map(|record| record.dir).filter(|left| left.exists()) {
        fs::remove_dir_all(&left).with_context(|| format!("cannot remove {}", left.display()))?;
    }
    remove(&dir)
}

/// Says what runs.
pub fn status() -> Result<()> {
    let dir = folder()?;
    if !owner(&dir).is_some_and(Owner::is_alive) {
        println!("no cluster runs: `cargo xtask cluster up` starts one");
        return Ok(());
    }
    match record(&dir) {
        Some(record) => record.print(&mut std::io::stdout().lock()),
        None => {
            println!("a cluster is being started; it writes into {}", dir.join(LOG).display());
            Ok(())
        }
    }
}

/// The owner: makes the cluster and stays until a signal comes.
pub fn hold() -> Result<()> {
    // Not of the terminal that it was started from. It is no error if it has a session of its own.
    setsid().ok();
    let dir = folder()?;
    write(&dir, OWNER, &Owner::current()?.record())?;
    let cluster = Cluster::start(Parts::Mesh)?;
    let kubeconfig = fs::read_to_string(cluster.kubeconfig()).context("cannot read the kubeconfig")?;
    let kubeconfig = write(&dir, "kubeconfig", &kubeconfig)?;
    let mut processes = Vec::new();
    for (name, proc) in cluster.processes() {
        let pid = i32::try_from(proc.pid())?;
        let start = Owner::of(pid).with_context(|| format!("{name} has ended"))?.start;
        processes.push(Process { version: version(&name), name, pid, start });
    }
    let record = Record { dir: cluster.dir().to_owned(), kubeconfig, xds: cluster.xds_port()?, processes };
    signals::expect_one();
    // Under its name only when it is whole: somebody waits for it.
    let partial = write(&dir, "partial", &serde_json::to_string_pretty(&record)?)?;
    fs::rename(&partial, dir.join(RECORD)).with_context(|| format!("cannot write in {}", dir.display()))?;
    loop {
        std::thread::park();
    }
}

impl Record {
    fn print(&self, out: &mut impl Write) -> Result<()> {
        for Process { name, version, pid, start } in &self.processes {
            let state = if (Owner { pid: *pid, start: *start }).is_alive() { "runs" } else { "HAS ENDED" };
            writeln!(out, "{name:<24} {state}, process {pid}, {version}")?;
        }
        writeln!(out, "istiod serves its configuration in plaintext on 127.0.0.1:{}", self.xds)?;
        writeln!(out, "data and logs are in {}", self.dir.display())?;
        writeln!(out, "export KUBECONFIG={}", self.kubeconfig.display())?;
        Ok(())
    }
}

/// The version that we have built, or where another program was found.
fn version(name: &str) -> String {
    let (component, file) = match name {
        "etcd" => (Component::Etcd, name),
        "istiod" => (Component::Istiod, "pilot-discovery"),
        _ => (Component::Kubernetes, name),
    };
    match component.find(file) {
        Some(path) if path.parent() != component.dir().as_deref() => path.display().to_string(),
        _ => component.version().to_owned(),
    }
}

fn folder() -> Result<PathBuf> {
    let cache =
        cache_dir().context("neither HOME nor XDG_CACHE_HOME is set: there is no place for the cluster")?;
    Ok(cache.join("cluster"))
}

/// One at a time.
fn hold_folder(dir: &Path) -> Result<File> {
    // Beside the folder, which comes and goes.
    let lock = dir.with_extension("lock");
    let held = || {
        lock.parent().map_or(Ok(()), fs::create_dir_all)?;
        let file = File::create(&lock)?;
        file.lock().map(|()| file)
    };
    held().with_context(|| format!("cannot take {}", lock.display()))
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

fn clear(dir: &Path) -> Result<()> {
    remove(dir)?;
    fs::create_dir(dir).with_context(|| format!("cannot make {}", dir.display()))
}

fn owner(dir: &Path) -> Option<Owner> {
    Owner::parse(&fs::read_to_string(dir.join(OWNER)).ok()?)
}

fn record(dir: &Path) -> Option<Record> {
    serde_json::from_str(&fs::read_to_string(dir.join(RECORD)).ok()?).ok()
}
