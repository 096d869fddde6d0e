//! Plugins that break the contract in one way each, and simple good ones: what the
//! end-to-end tests need beyond the shipped plugins.

mod attacks;
mod models;
mod samplers;
