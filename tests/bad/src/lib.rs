//! Plugins for the end-to-end tests: bad ones, each of which breaks the contract in one way, and
//! simple good ones.

mod attacks;
mod misbehaves;
mod models;
mod samplers;
