//! Pods with a user namespace of their own, as `hostUsers: false` makes them: it owns the pod's network namespace, and the pod's first
//! process keeps both.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::process::Proc;
use crate::cmd::Cmd;
use crate::wait::wait_for;

/// How many uids such a pod has.
const COUNT: u32 = 1 << 16;
/// Patience with what takes milliseconds on an idle machine.
const SOON: Duration = Duration::from_secs(10);

/// The command of the pod's first process, which makes both namespaces.
pub(crate) fn first_process(cgroup: &Path) -> Cmd {
    let script = r#"echo $$ >"$0/cgroup.procs" && exec unshare --user --net -- setpriv --pdeathsig KILL -- sleep infinity"#;
    Cmd::new("sh").args(["-c", script]).arg(cgroup)
}

/// Gives the namespaces of the first process their uids and their name; returns where its user namespace is.
pub(crate) fn set_up(first: &Proc, netns: &str, first_uid: u32) -> Result<PathBuf> {
    let (own, its) = (Path::new("/proc/self/ns"), PathBuf::from(format!("/proc/{}/ns", first.pid())));
    wait_for("namespaces of a pod's first process", SOON, || {
        first.must_run()?;
        let is_made =
            |kind| -> Result<bool> { Ok(fs::read_link(own.join(kind))? != fs::read_link(its.join(kind))?) };
        Ok((is_made("user")? && is_made("net")?).then_some(()))
    })?;
    for map in ["uid_map", "gid_map"] {
        let path = its.with_file_name(map);
        fs::write(&path, format!("0 {first_uid} {COUNT}\n"))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Cmd::new("ip").args(["netns", "attach", netns, &first.pid().to_string()]).run()?;
    Ok(its.join("user"))
}
