//! `sidescope aggregator` against a real API server, with agents that the tests speak for over the real protocol.

mod edges;
mod failures;
mod hostile;
mod start;
