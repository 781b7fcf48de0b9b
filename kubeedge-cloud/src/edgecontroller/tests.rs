//! EdgeController's behaviour: told through its state, and against an API server in `tests/api.rs`.

mod state;
mod status;
