//! Free ports of loopback.
//!
//! From below the range that the kernel takes ports for outgoing connections from: a port that was free stays so until it is used,
//! unless another process picks the same one. Then who was to listen says so, and gets another.

use std::collections::BTreeSet;
use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::BuildHasher;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Mutex;

use anyhow::{Result, bail};

use crate::bed::lock;

/// Handed out by this process, and never twice.
static TAKEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
const TRIES: usize = 1000;
/// How many ports are looked at, at most, below the kernel's own.
const SPAN: u16 = 20_000;

/// So many ports that nobody listens on.
pub(super) fn pick<const N: usize>() -> Result<[u16; N]> {
    let mut ports = [0; N];
    for port in &mut ports {
        *port = one()?;
    }
    Ok(ports)
}

fn one() -> Result<u16> {
    let end = first_of_the_kernel();
    let first = end.saturating_sub(SPAN).max(1024);
    let mut taken = lock(&TAKEN);
    for _ in 0..TRIES {
        // A hasher of the standard library is seeded at random.
        let random = RandomState::new().hash_one(0) % u64::from(end - first);
        let port = first + u16::try_from(random).unwrap_or_default();
        if !taken.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            taken.insert(port);
            return Ok(port);
        }
    }
    bail!("no free port between {first} and {end} in {TRIES} tries")
}

fn first_of_the_kernel() -> u16 {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let first = text.split_whitespace().next().and_then(|first| first.parse().ok());
    // As the kernel has it where nobody has set it; and some room, where somebody has set it very low.
    first.unwrap_or(32_768_u16).max(10_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_and_handed_out_once() {
        let ports: [u16; 50] = pick().unwrap();
        assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), 50);
        for port in ports {
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        }
    }
}
