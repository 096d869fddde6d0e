//! Runs the host program, each test in a folder of its own.

mod bad_input;
mod closed_form;
mod conform;
mod cuda;
mod data;
mod digests;
mod eval;
mod examples;
mod faults;
mod guards;
mod harness;
mod misbehaving;
mod modes;
mod networks;
mod pages;
mod plugins;
mod progress;
mod quick;
mod report;
mod resume;
mod suites;
mod sweep;
mod train;
mod trust;
mod versions;
