//! EdgeController's behaviour: told through its state, and against an API server in `tests/api.rs`.

#[cfg(feature = "standalone")]
mod api;
mod away;
#[cfg(all(feature = "pki", feature = "standalone"))]
mod certificates;
mod nodes;
mod placement;
mod services;
mod state;
mod status;
