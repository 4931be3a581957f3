//! The one binary of Sidescope.

fn main() {}
