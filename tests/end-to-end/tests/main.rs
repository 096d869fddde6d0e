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
mod harness;
mod modes;
mod networks;
mod pages;
mod quick;
mod report;
mod resume;
mod suites;
mod sweep;
mod train;
mod versions;
