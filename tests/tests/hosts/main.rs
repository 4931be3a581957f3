//! Which hosts `sidescope observe` learns from what clients send, byte by byte: the real binary, the real kernel, real clients'
//! bytes.

mod dns;
#[path = "../observe/fixture.rs"]
#[allow(dead_code, reason = "shared with the tests of edges, which use all of it")]
mod fixture;
mod http1;
mod losses;
mod older;
mod pool;
mod privacy;
mod replay;
mod sink;
mod tls;
