//! Behaviour through the pipes.
