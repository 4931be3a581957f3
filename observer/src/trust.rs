//! Who may be believed: the aggregator by its certificate, agents by their tokens.

pub mod files;
pub mod material;
pub mod serving;
pub mod store;
pub mod tokens;
