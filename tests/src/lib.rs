//! The test bed: real processes in network namespaces, used by the end-to-end tests, the demo and the benches.
