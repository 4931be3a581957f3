//! Processes of a bed: started into namespace, cgroup and user by the programs of util-linux, so that no unsafe code is needed here.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use super::host::HostData;
use super::lock;
use crate::cmd::{self, Cmd, Stream};
use crate::wait::wait_for;

/// A process of a bed. The bed owns it: dropping this handle does not end it.
#[derive(Clone)]
pub struct Proc {
    running: Arc<Running>,
}

pub(crate) struct Running {
    line: String,
    pid: Pid,
    child: Mutex<Child>,
    log: PathBuf,
    tees: Mutex<Vec<JoinHandle<()>>>,
}

/// The same command, as it is run on a host of a bed or, without one, on the machine.
///
/// The shim joins the cgroup before anything else happens; the namespace needs root, so the user changes after it; and the
/// parent-death signal comes last, because the kernel forgets it when the user changes. Who is killed before that is asked for leaves
/// the process behind: on a host, for the next bed to sweep; on the machine it sees that its parent is another, and ends.
pub(crate) fn placed(host: Option<&HostData>, cmd: &Cmd) -> Cmd {
    let mut outer = match host {
        Some(host) => {
            // The network namespace is open before the user namespace is entered, in which nobody has a right to it otherwise.
            let users = host.users.iter().map(|users| format!("--user={}", users.display()));
            Cmd::new("sh")
                .args(["-c", r#"echo $$ >"$0/cgroup.procs" && exec "$@""#])
                .arg(&host.cgroup)
                .arg("nsenter")
                .arg(format!("--net=/run/netns/{}", host.netns))
                .args(users)
                .args(["--", "setpriv"])
        }
        None => Cmd::new("setpriv"),
    };
    outer = outer.args(["--pdeathsig", "KILL"]);
    if let Some(uid) = cmd.uid {
        let uid = uid.to_string();
        outer = outer.args(["--reuid", &uid, "--regid", &uid, "--clear-groups"]);
    }
    outer = outer.arg("--");
    if host.is_none() {
        let parent = std::process::id().to_string();
        outer = outer.args(["sh", "-c", r#"[ "$PPID" = "$0" ] && exec "$@""#, &parent]);
    }
    outer = outer.arg(&cmd.program).args(&cmd.args);
    outer.env.clone_from(&cmd.env);
    outer.stdin.clone_from(&cmd.stdin);
    outer
}

/// Starts a process with its output where the command wants it.
pub(crate) fn start(host: Option<&HostData>, cmd: &Cmd, log: PathBuf) -> Result<Running> {
    let failed = || format!("cannot start `{}`", cmd.line());
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log)
        .with_context(|| format!("cannot open {}", log.display()))?;
    let stdio = |stream| -> Result<Stdio> {
        Ok(match stream {
            Stream::Log => file.try_clone()?.into(),
            Stream::Inherit => Stdio::inherit(),
            Stream::Tee => Stdio::piped(),
        })
    };
    let mut command = placed(host, cmd).command();
    command.stdout(stdio(cmd.stdout)?).stderr(stdio(cmd.stderr)?);
    let mut child = cmd::spawn(command).with_context(failed)?;
    let pid = Pid::from_raw(i32::try_from(child.id()).with_context(failed)?);
    let mut tees = Vec::new();
    if let Some(pipe) = child.stdout.take() {
        tees.push(tee(pipe, file.try_clone()?));
    }
    if let Some(pipe) = child.stderr.take() {
        tees.push(tee(pipe, file.try_clone()?));
    }
    Ok(Running { line: cmd.line(), pid, child: Mutex::new(child), log, tees: Mutex::new(tees) })
}

/// Copies lines to a log and to our standard error until the writer is gone.
fn tee(pipe: impl std::io::Read + Send + 'static, mut log: File) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        while matches!(pipe.read_until(b'\n', &mut line), Ok(read) if read > 0) {
            // A copy that cannot be written must not stop the process that wrote it.
            log.write_all(&line).ok();
            std::io::stderr().write_all(&line).ok();
            line.clear();
        }
    })
}

impl Running {
    /// Kills it and what it started in its process group, and takes its exit.
    pub(crate) fn kill(&self) {
        let mut child = lock(&self.child);
        // As long as its exit has not been taken, its number belongs to nobody else.
        if let Ok(None) = child.try_wait() {
            killpg(self.pid, Signal::SIGKILL).ok();
            child.kill().ok();
            child.wait().ok();
        }
    }
}

impl Proc {
    pub(crate) fn new(running: Arc<Running>) -> Self {
        Self { running }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.running.pid.as_raw().unsigned_abs()
    }

    /// The command line that it was started with, without what put it into its place.
    pub fn line(&self) -> &str {
        &self.running.line
    }

    /// What it has written to those of its streams that are logged.
    pub fn log(&self) -> Result<String> {
        let bytes = fs::read(&self.running.log)
            .with_context(|| format!("cannot read {}", self.running.log.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Its exit status, if it has ended and all that it has said has been copied.
    pub fn exited(&self) -> Result<Option<ExitStatus>> {
        let status = lock(&self.running.child).try_wait();
        let status = status.with_context(|| format!("cannot wait for `{}`", self.line()))?;
        Ok(status.filter(|_| lock(&self.running.tees).iter().all(JoinHandle::is_finished)))
    }

    /// An error with what it has said, if it has ended.
    pub fn must_run(&self) -> Result<()> {
        match self.exited()? {
            None => Ok(()),
            Some(status) => bail!("`{}` has ended: {status}\n{}", self.line(), self.log()?.trim_end()),
        }
    }

    /// Sends it a signal, if it still runs.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let mut child = lock(&self.running.child);
        if child.try_wait()?.is_none() {
            kill(self.running.pid, signal)
                .with_context(|| format!("cannot signal `{}`", self.running.line))?;
        }
        Ok(())
    }

    /// Waits for its end.
    pub fn wait(&self, timeout: Duration) -> Result<ExitStatus> {
        wait_for(&format!("the end of `{}`", self.line()), timeout, || self.exited())
    }

    /// Waits for its end; an exit code other than 0 is an error with what it has said.
    pub fn success(&self, timeout: Duration) -> Result<()> {
        let status = self.wait(timeout)?;
        if !status.success() {
            bail!("`{}`: {status}\n{}", self.line(), self.log()?.trim_end());
        }
        Ok(())
    }

    /// Waits until its log holds this text.
    pub fn wait_for_log(&self, text: &str, timeout: Duration) -> Result<()> {
        let what = format!("`{text}` in what `{}` says", self.line());
        wait_for(&what, timeout, || {
            // Asked for first: it may say the text and end between two looks.
            let running = self.must_run();
            if self.log()?.contains(text) {
                return Ok(Some(()));
            }
            running.map(|()| None)
        })
    }

    /// Kills it.
    pub fn kill(&self) {
        self.running.kill();
    }
}
