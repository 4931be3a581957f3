//! Commands: described first, so that the bed can put them into a namespace and a cgroup, and every failure can name what ran.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Mutex, OnceLock};
use std::thread;

use anyhow::{Context, Result, bail};

/// Where an output stream of a process goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stream {
    /// Into the process's log file in the bed's state directory.
    #[default]
    Log,
    /// To where ours goes, so that the process sees a terminal if we do.
    Inherit,
    /// Into the log file and to our standard error.
    Tee,
}

/// A program to run somewhere in a bed.
#[derive(Clone, Debug)]
pub struct Cmd {
    pub(crate) program: OsString,
    pub(crate) args: Vec<OsString>,
    pub(crate) env: Vec<(OsString, OsString)>,
    pub(crate) uid: Option<u32>,
    pub(crate) stdin: Option<Vec<u8>>,
    pub(crate) stdout: Stream,
    pub(crate) stderr: Stream,
}

impl Cmd {
    /// A program by its name or path.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            uid: None,
            stdin: None,
            stdout: Stream::Log,
            stderr: Stream::Log,
        }
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// A variable of its environment.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Runs as this user and the group of the same number: 1337 is the proxy's.
    #[must_use]
    pub fn uid(mut self, uid: u32) -> Self {
        self.uid = Some(uid);
        self
    }

    /// What it reads. Only for commands that are run to their end; without it standard input is empty.
    #[must_use]
    pub fn stdin(mut self, text: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(text.into());
        self
    }

    /// Where the standard output of a spawned process goes.
    #[must_use]
    pub fn stdout(mut self, stream: Stream) -> Self {
        self.stdout = stream;
        self
    }

    /// Where the standard error of a spawned process goes.
    #[must_use]
    pub fn stderr(mut self, stream: Stream) -> Self {
        self.stderr = stream;
        self
    }

    /// The command line, for messages.
    pub fn line(&self) -> String {
        let words = std::iter::once(&self.program).chain(&self.args);
        words.map(|word| quoted(&word.to_string_lossy())).collect::<Vec<_>>().join(" ")
    }

    /// As the standard library wants it, in a process group of its own: Ctrl-C reaches the owner of the bed, who ends the others in order.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args).envs(self.env.iter().map(|(name, value)| (name, value)));
        command.process_group(0).stdin(Stdio::null());
        command
    }

    /// Runs it to its end on the machine itself; an exit code other than 0 is an error with command line and standard error.
    pub fn run(&self) -> Result<Output> {
        let mut command = self.command();
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        if self.stdin.is_some() {
            command.stdin(Stdio::piped());
        }
        let child = spawn(command).with_context(|| format!("cannot start `{}`", self.line()))?;
        self.finish(child)
    }

    /// Feeds and reads a child that was started with pipes, and judges its exit.
    pub(crate) fn finish(&self, mut child: Child) -> Result<Output> {
        // On a thread, because a child that writes before it has read all would block us both.
        let feeder = self.stdin.clone().zip(child.stdin.take()).map(|(text, mut pipe)| {
            thread::spawn(move || match pipe.write_all(&text) {
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
                _ => Ok(()),
            })
        });
        let output =
            child.wait_with_output().with_context(|| format!("cannot wait for `{}`", self.line()))?;
        if let Some(feeder) = feeder {
            let fed = feeder.join().unwrap_or_else(|_| Err(io::Error::other("the feeding thread panicked")));
            fed.with_context(|| format!("cannot write to `{}`", self.line()))?;
        }
        if !output.status.success() {
            bail!(
                "`{}`: {}\n{}",
                self.line(),
                output.status,
                String::from_utf8_lossy(&output.stderr).trim_end()
            );
        }
        Ok(output)
    }
}

/// A word as a shell would want it typed.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+[]".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

type Job = (Command, SyncSender<io::Result<Child>>);

/// Starts a process from one thread that lives as long as this process: the kernel sends the parent-death signal when the
/// *thread* that forked ends, and the threads of a test runner come and go.
pub(crate) fn spawn(command: Command) -> io::Result<Child> {
    static KEEPER: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    let keeper = KEEPER.get_or_init(|| {
        let (jobs, queue): (Sender<Job>, Receiver<Job>) = channel();
        thread::spawn(move || {
            for (mut command, answer) in queue {
                // Nobody waiting is no error here: whoever asked has given up, and takes the child down with the bed.
                drop(answer.send(command.spawn()));
            }
        });
        Mutex::new(jobs)
    });
    let gone = || io::Error::other("the thread that starts processes has ended");
    let (answer, result) = sync_channel(1);
    crate::bed::lock(keeper).send((command, answer)).map_err(|_| gone())?;
    result.recv().map_err(|_| gone())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_command_line_and_what_it_said() {
        let error = Cmd::new("sh").args(["-c", "echo broken >&2; exit 3"]).run().unwrap_err();
        assert_eq!(error.to_string(), "`sh -c 'echo broken >&2; exit 3'`: exit status: 3\nbroken");
    }

    #[test]
    fn a_program_that_is_missing_is_named() {
        let error = Cmd::new("/no/such/program").run().unwrap_err();
        assert_eq!(error.to_string(), "cannot start `/no/such/program`");
    }

    #[test]
    fn what_is_fed_is_read() {
        let output = Cmd::new("cat").stdin("text").run().unwrap();
        assert_eq!(output.stdout, b"text");
    }
}
