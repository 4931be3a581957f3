//! Calls of other programs, as the user and as root.

use std::{
    env,
    ffi::OsStr,
    fmt::Write,
    io::{IsTerminal, stdin},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

/// The folder of the repository.
pub(crate) fn root_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the repository").to_owned()
}

/// The cargo that runs us.
pub(crate) fn cargo<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(args);
    cargo
}

/// Runs `command` to its end; what it prints goes where ours goes.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| shown(command))?;
    ensure!(status.success(), "`{}`: {status}", shown(command));
    Ok(())
}

/// What `command` prints on stdout, or nothing where it fails or is not there.
pub(crate) fn stdout(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `command` as one would type it.
pub(crate) fn shown(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        // Writing to a String does not fail.
        let _ = write!(line, " {}", arg.to_string_lossy());
    }
    line
}

/// The way to root's rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Root {
    /// We have them.
    Already,
    /// sudo, which must not ask: there is no one at a terminal, or it need not.
    Sudo,
    /// sudo, which may ask for a password at the terminal.
    SudoMayAsk,
}

impl Root {
    /// Finds the way, or says what to do.
    pub(crate) fn obtain() -> Result<Self> {
        if nix::unistd::geteuid().is_root() {
            return Ok(Self::Already);
        }
        let mut silent = Command::new("sudo");
        if stdout(silent.args(["-n", "true"])).is_some() {
            return Ok(Self::Sudo);
        }
        if stdin().is_terminal()
            && Command::new("sudo").arg("-v").status().is_ok_and(|status| status.success())
        {
            return Ok(Self::SudoMayAsk);
        }
        bail!(
            "this needs root: run it as root, or as a user who may use sudo (without a terminal: without a password)"
        )
    }

    /// What to put before a command line.
    pub(crate) fn prefix(self) -> &'static [&'static str] {
        match self {
            Self::Already => &[],
            Self::Sudo => &["sudo", "-n", "-E"],
            Self::SudoMayAsk => &["sudo", "-E"],
        }
    }

    /// `program` with root's rights.
    pub(crate) fn command(self, program: &str) -> Command {
        let mut words = self.prefix().iter().copied().chain([program]);
        let mut command = Command::new(words.next().expect("at least the program"));
        command.args(words);
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_prefixed_only_where_it_must_be_obtained() {
        assert_eq!(shown(&Root::Already.command("id")), "id");
        assert_eq!(shown(&Root::Sudo.command("id")), "sudo -n -E id");
        assert_eq!(shown(&Root::SudoMayAsk.command("id")), "sudo -E id");
    }

    #[test]
    fn a_failed_command_is_named_with_its_status() {
        let error = run(Command::new("false").arg("--flag")).unwrap_err().to_string();
        assert!(error.starts_with("`false --flag`: exit status: 1"), "{error}");
    }

    #[test]
    fn a_program_that_is_not_there_prints_nothing() {
        assert_eq!(stdout(&mut Command::new("no-such-program-here")), None);
    }
}
