//! `sidescope observe` itself: the real binary, the real kernel, real connections.

mod bookinfo;
mod edges;
mod ends;
mod fixture;
mod input;
mod peers;
mod pods;
mod readme;
mod users;
