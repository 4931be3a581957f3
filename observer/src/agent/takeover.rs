//! Going on where another agent has ended.

use std::io;

use sidescope_common::{EdgeKey, EdgeState};
use tracing::{debug, info, warn};

use crate::probes::pins::{Other, PinError};
use crate::watch::{Watch, collect};

/// Takes over what another layout knew, and takes its programs off. Returns the edges that did not come into the own set.
pub(super) fn drain(other: &Other, watch: &mut Watch) -> Result<Vec<(EdgeKey, EdgeState)>, PinError> {
    let collector = &mut watch.collector;
    let drained = other.drain(&mut watch.probes, |record| collect(collector, record))?;
    for _ in 0..drained.proxies_beyond {
        collector.too_many_proxies(None);
    }
    info!(
        layout = other.name,
        moved = drained.moved,
        kept = drained.kept.len(),
        "took over from another layout"
    );
    if let Some(reason) = drained.lost {
        collector.unreadable_layout();
        warn!(
            layout = other.name,
            %reason,
            "edges of an agent of another version cannot be read and are lost, as far as it had not reported them; those of connections \
             that are open come again by themselves. Before the next such change, let the agent end by SIGTERM: it then reports all"
        );
    }
    Ok(drained.kept)
}

pub(super) fn warn_of_kill() {
    warn!(
        "the agent before this one has not reported to its end (killed, or it failed): host names that it had read are known again \
         with the next request that names them"
    );
}

pub(super) fn warn_of_foreign(foreign: io::Result<Vec<u32>>) {
    match foreign {
        Ok(programs) if programs.is_empty() => {}
        Ok(programs) => warn!(
            ?programs,
            "programs of Sidescope that this agent does not keep are attached to the cgroup: another agent (with another --bpffs) or \
             `sidescope observe` runs, or an agent has left them (`sidescope agent --purge --bpffs` with its path removes them). Both see \
             the same connections, and each costs as much"
        ),
        Err(reason) => debug!(%reason, "the programs of other agents cannot be looked for"),
    }
}
