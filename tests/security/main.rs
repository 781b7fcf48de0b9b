//! The vulnerabilities that KubeEdge has had, one test each, named by its number.

mod bodies;
mod commands;
mod frames;
