//! `cargo xtask`: everything that a person or CI does with this repository.

fn main() {}
