//! Replays recordings of other programs in the tests of this project's plugins: random numbers and
//! networks that are the same on both sides.
//!
//! The recordings are in `tests/parity/fixtures`; the programs that made them are in
//! `tests/parity`.

mod networks;
mod numbers;
mod objectives;
mod small_net;

pub use networks::assert_computes_as_recorded;
pub use numbers::ReplayedNumbers;
pub use objectives::assert_losses_as_recorded;
pub use small_net::SmallNet;

use plugin_api::Result;
use plugin_api::tch::Tensor;
use std::collections::HashMap;
use std::path::Path;

/// The tensors of a recording by name; `file` is its name in `tests/parity/fixtures`.
///
/// # Errors
/// If the file cannot be read.
pub fn read_fixture(file: &str) -> Result<HashMap<String, Tensor>> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../parity/fixtures");
    Ok(Tensor::read_safetensors(fixtures.join(file))?.into_iter().collect())
}
