//! The folder of a cluster and its processes: who owns them, and how they end.
//!
//! A process of a cluster is killed by the kernel when its owner dies, whatever the owner dies of. The folder bears pid and start time
//! of the owner, written before the first thing is made, so that the next cluster sweeps what an owner could not remove.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::BuildHasher;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use tokio::runtime::Handle;

use super::READY;
use super::local::Local;
use super::ports;
use crate::bed::process::{self, Running};
use crate::bed::signals::Ends;
use crate::bed::{Owner, Proc, lock};
use crate::cmd::Cmd;
use crate::wait::{patient, wait_for};

/// How often a component gets other ports because somebody was faster.
const TRIES: usize = 5;

/// What a cluster and the signal handler share.
pub(super) struct Inner {
    pub(super) id: String,
    pub(super) dir: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: BTreeMap<String, Arc<Running>>,
    ended: bool,
}

/// How to tell that a component is ready: this path of its first port answers.
pub(super) struct Ready {
    pub(super) scheme: &'static str,
    pub(super) path: &'static str,
}

impl Inner {
    /// Sweeps what is ownerless and makes a folder for a new cluster.
    pub(super) fn claim() -> Result<Arc<Self>> {
        let parent = parent();
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&parent);
        made.with_context(|| format!("cannot make {}", parent.display()))?;
        let _held = hold(&parent)?;
        sweep(&parent)?;
        loop {
            let id = format!("{:05x}", RandomState::new().hash_one(0) & 0xf_ffff);
            let dir = parent.join(&id);
            match fs::create_dir(&dir) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                made => made.with_context(|| format!("cannot make {}", dir.display()))?,
            }
            let inner = Self { id, dir, state: Mutex::default() };
            inner.write("owner", &Owner::current()?.record())?;
            return Ok(Arc::new(inner));
        }
    }

    /// Writes a file that only we may read: most have keys in them.
    pub(super) fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        write(&self.dir, name, text)
    }

    /// The state, for as long as the cluster has not been ended.
    fn open(&self) -> Result<MutexGuard<'_, State>> {
        let state = lock(&self.state);
        if state.ended {
            bail!("the cluster {} has been ended", self.id);
        }
        Ok(state)
    }

    /// Starts a process that ends with the cluster; one of the same name before it must have ended.
    pub(super) fn spawn(&self, name: &str, cmd: &Cmd) -> Result<Proc> {
        let mut state = self.open()?;
        let running = Arc::new(process::start(None, cmd, self.log(name))?);
        if let Some(before) = state.running.insert(name.to_owned(), Arc::clone(&running)) {
            before.kill();
        }
        Ok(Proc::new(running))
    }

    /// The same for a component that listens: on free ports, which `cmd` puts into its command line. Returns when it is ready.
    pub(super) fn serve<const N: usize>(
        &self,
        handle: &Handle,
        name: &str,
        ready: &Ready,
        cmd: impl Fn([u16; N]) -> Result<Cmd>,
    ) -> Result<[u16; N]> {
        let mut tries = 1..=TRIES;
        loop {
            let ports = ports::pick()?;
            let asked = Local::new(handle, ready.scheme, ports[0])?;
            let before = self.log_len(name);
            let proc = self.spawn(name, &cmd(ports)?)?;
            let is_ready = wait_for(&format!("{name} to be ready"), READY, || {
                // Asked for first: somebody else may answer on a port that was taken.
                let running = proc.must_run();
                let answer = asked.get(ready.path);
                running.map(|()| answer.ok())
            });
            match is_ready {
                Ok(_) => return Ok(ports),
                Err(_) if self.port_was_taken(name, before) && tries.next().is_some() => proc.kill(),
                // Of one that has ended the error holds all that it said.
                Err(error) if proc.exited()?.is_some() => return Err(error),
                Err(error) => return Err(error.context(self.last_words(name))),
            }
        }
    }

    /// Starts a component again on the port that it had, for which it may have to wait.
    pub(super) fn serve_again(&self, name: &str, cmd: &Cmd, is_ready: impl Fn() -> Result<()>) -> Result<()> {
        let end = Instant::now() + patient(READY);
        loop {
            let before = self.log_len(name);
            self.spawn(name, cmd)?;
            match is_ready() {
                Err(_) if self.port_was_taken(name, before) && Instant::now() < end => {}
                result => return result,
            }
        }
    }

    pub(super) fn processes(&self) -> Vec<(String, Proc)> {
        let state = lock(&self.state);
        state.running.iter().map(|(name, running)| (name.clone(), Proc::new(Arc::clone(running)))).collect()
    }

    pub(super) fn process(&self, name: &str) -> Result<Proc> {
        let found = self.processes().into_iter().find(|(known, _)| known == name);
        Ok(found.with_context(|| format!("the cluster {} has no {name}", self.id))?.1)
    }

    pub(super) fn kill(&self, name: &str) {
        if let Some(running) = lock(&self.state).running.get(name) {
            running.kill();
        }
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    fn log_len(&self, name: &str) -> usize {
        fs::metadata(self.log(name)).map_or(0, |log| usize::try_from(log.len()).unwrap_or(usize::MAX))
    }

    fn port_was_taken(&self, name: &str, before: usize) -> bool {
        let log = fs::read(self.log(name)).unwrap_or_default();
        let new = String::from_utf8_lossy(log.get(before..).unwrap_or_default()).into_owned();
        new.contains("address already in use")
    }

    /// The end of a log, for an error: the folder is gone when somebody reads that.
    fn last_words(&self, name: &str) -> String {
        let log = fs::read(self.log(name)).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        format!("the last lines of {name}:\n{}", lines[lines.len().saturating_sub(20)..].join("\n"))
    }

    pub(super) fn tear_down(&self) -> Result<()> {
        self.tear_down_locked(&mut lock(&self.state))
    }

    pub(super) fn tear_down_or_say(&self) {
        if let Err(error) = self.tear_down() {
            eprintln!("the cluster {} left something behind: {error:#}", self.id);
        }
    }

    /// Ends and removes everything; a second time does nothing.
    fn tear_down_locked(&self, state: &mut State) -> Result<()> {
        if std::mem::replace(&mut state.ended, true) {
            return Ok(());
        }
        for running in state.running.values() {
            running.kill();
        }
        fs::remove_dir_all(&self.dir).with_context(|| format!("cannot remove {}", self.dir.display()))
    }
}

impl Ends for Inner {
    fn title(&self) -> String {
        format!("cluster {}", self.id)
    }

    fn end_for_good(&self) -> Result<()> {
        let mut state = lock(&self.state);
        let result = self.tear_down_locked(&mut state);
        std::mem::forget(state);
        result
    }
}

/// Writes a file that only we may read.
pub(super) fn write(dir: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    let file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Where the folders of all clusters of this user are.
fn parent() -> PathBuf {
    std::env::temp_dir().join(format!("sidescope-clusters-{}", nix::unistd::geteuid()))
}

fn hold(parent: &Path) -> Result<File> {
    let path = parent.join("lock");
    let held = File::create(&path).and_then(|file| file.lock().map(|()| file));
    held.with_context(|| format!("cannot take {}", path.display()))
}

/// Removes the folders of owners that are gone. Their processes went with them; one that is still at it keeps its folder until next time.
fn sweep(parent: &Path) -> Result<()> {
    for entry in fs::read_dir(parent).with_context(|| format!("cannot list {}", parent.display()))? {
        let path = entry?.path();
        if !path.is_dir() {
            continue;
        }
        let owner = Owner::parse(&fs::read_to_string(path.join("owner")).unwrap_or_default());
        if !owner.is_some_and(Owner::is_alive)
            && let Err(error) = fs::remove_dir_all(&path)
        {
            eprintln!("cannot sweep the ownerless cluster {}: {error}", path.display());
        }
    }
    Ok(())
}
