//! The scanner's rights: it keeps what it needs and gives up the rest.

use caps::{CapSet, Capability, CapsHashSet};

/// What [`look`](crate::namespaces::look) takes.
const NEEDED: [Capability; 2] = [Capability::CAP_SYS_ADMIN, Capability::CAP_SYS_PTRACE];

/// Why the rights are not what they have to be.
#[derive(Debug, thiserror::Error)]
pub enum RightsError {
    /// Something is missing.
    #[error(
        "the scanner needs {missing}: run it as root, or in a container that adds SYS_ADMIN and SYS_PTRACE"
    )]
    Missing {
        /// Names of the capabilities.
        missing: String,
    },
    /// The kernel did not take it.
    #[error("cannot give up capabilities")]
    GiveUp(#[source] caps::errors::CapsError),
    /// The kernel did not take it.
    #[error("cannot rule out new privileges")]
    NoNewPrivileges(#[source] nix::Error),
}

/// Gives up every capability that is not needed, for this thread and all that it will start.
pub(super) fn give_up() -> Result<(), RightsError> {
    let permitted = caps::read(None, CapSet::Permitted).map_err(RightsError::GiveUp)?;
    let missing: Vec<_> =
        NEEDED.iter().filter(|cap| !permitted.contains(cap)).map(ToString::to_string).collect();
    if !missing.is_empty() {
        return Err(RightsError::Missing { missing: missing.join(" and ") });
    }
    let needed = CapsHashSet::from(NEEDED);
    let give_up = || {
        caps::clear(None, CapSet::Ambient)?;
        caps::clear(None, CapSet::Inheritable)?;
        caps::set(None, CapSet::Effective, &needed)?;
        caps::set(None, CapSet::Permitted, &needed)
    };
    give_up().map_err(RightsError::GiveUp)?;
    nix::sys::prctl::set_no_new_privs().map_err(RightsError::NoNewPrivileges)
}
