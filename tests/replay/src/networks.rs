use crate::read_fixture;
use plugin_api::tch::{self, Device, Kind, Tensor, nn};
use plugin_api::{Model, Result, Task};

/// Numbers between -1 and 1, in f64, that look like noise and have a simple formula.
fn waves(shape: &[i64], phase: f64) -> Tensor {
    let places = Tensor::arange(shape.iter().product::<i64>(), (Kind::Int64, Device::Cpu));
    ((&places * &places).remainder(1009).to_kind(Kind::Double) + phase).sin().reshape(shape)
}

/// Asserts that a network for images `[4, 3, 12, 12]` of ten classes agrees, in f64, with the
/// recording of the same network by `tests/parity/record_networks.py`. Compared are the logits in
/// evaluation, the logits in training, and the running statistics after that of the first and the
/// last normalisation. Weights and images are filled by the formula of that program, which depends
/// on the sorted names. `file` is the recording's name in `tests/parity/fixtures`, `norms` the
/// names of the two layers.
///
/// # Errors
/// Those of the network, or if the file cannot be read.
///
/// # Panics
/// If a value differs by more than 1e-9.
pub fn assert_computes_as_recorded<M: Model>(
    options: M::Options,
    file: &str,
    norms: [&str; 2],
) -> Result<()> {
    let _guard = tch::no_grad_guard();
    let mut variables = nn::VarStore::new(Device::Cpu);
    let task = Task { channels: 3, height: 12, width: 12, classes: 10 };
    let model = M::new(options, task, &variables.root())?;
    variables.double();
    let mut state: Vec<_> = variables.variables().into_iter().collect();
    state.sort_by(|(one, _), (other, _)| one.cmp(other));
    for (place, (name, tensor)) in state.iter_mut().enumerate() {
        let (size, numbers) = (tensor.size(), waves(&tensor.size(), place as f64));
        let spread = name.ends_with("weight") || name.ends_with("running_var");
        tensor.copy_(&match size.len() {
            1 => numbers / 4 + f64::from(u8::from(spread)),
            _ => numbers * (2.0 / size[1..].iter().product::<i64>() as f64).sqrt(),
        });
    }
    let recorded = read_fixture(file)?;
    let assert_close = |what: &str, got: &Tensor| {
        let difference = (got - &recorded[what]).abs().max().double_value(&[]);
        assert!(difference < 1e-9, "{what} differs by {difference:e}");
    };
    let images = (waves(&[4, 3, 12, 12], 0.5) + 1) / 2;
    assert_close("evaluation", &model.forward(&images, false)?);
    assert_close("training", &model.forward(&images, true)?);
    let state = variables.variables();
    for (what, norm) in ["first", "last"].into_iter().zip(norms) {
        let moments = ["mean", "var"].map(|moment| &state[&format!("{norm}.running_{moment}")]);
        assert_close(what, &Tensor::cat(&moments, 0).narrow(0, 0, recorded[what].size()[0]));
    }
    Ok(())
}
