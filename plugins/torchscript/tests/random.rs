//! The trial of a network leaves libtorch's random numbers where they were. Other tests draw from the
//! same generator, so that this one has a program of its own.

use plugin_api::tch::nn::VarStore;
use plugin_api::tch::{self, Device, Kind, Tensor};
use plugin_api::{Model, Task};
use torchscript::{Options, TorchScript};

#[test]
fn a_network_draws_no_random_number_while_it_is_tried() {
    let file = format!("{}/tests/fixtures/scripted.pt", env!("CARGO_MANIFEST_DIR"));
    let options = Options { file: Some(file), ..Options::default() };
    let task = Task { channels: 1, height: 8, width: 8, classes: 3 };
    tch::manual_seed(7);
    let expected = Tensor::rand([4], (Kind::Float, Device::Cpu));
    tch::manual_seed(7);
    let variables = VarStore::new(Device::Cpu);
    let _network = TorchScript::new(options, task, &variables.root()).expect("a network");
    assert_eq!(Tensor::rand([4], (Kind::Float, Device::Cpu)), expected);
}
