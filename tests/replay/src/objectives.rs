use crate::read_fixture;
use plugin_api::losses::gradients;
use plugin_api::tch::{Kind, Tensor};
use plugin_api::testing::{FixedNumbers, Round};
use plugin_api::{Norm, Objective, ThreatModel};

/// The largest difference from a recorded number.
const TOLERANCE: f64 = 1e-9;

/// Asserts that an objective with its default options has the losses, and the gradients with respect to
/// the weights of a small network, that `record_objectives.py` recorded under this name in f64.
///
/// # Panics
/// If they differ, or the recording cannot be read.
pub fn assert_losses_as_recorded<O: Objective>(name: &str) {
    let recorded = read_fixture("objectives.safetensors").expect("a fixture");
    let of = |key: &str| &recorded[key];
    let parameters = ["hidden", "bias", "output"];
    let weights = parameters.map(|key| of(key).detach().set_requires_grad(true));
    let [hidden, bias, output] = &weights;
    let network =
        |images: &Tensor| (images.flatten(1, -1).matmul(&hidden.tr()) + bias).tanh().matmul(&output.tr());
    let labels: Vec<i64> = Vec::try_from(of("labels")).expect("labels");
    let draws: Vec<f64> = Vec::try_from(of("draws").flatten(0, -1)).expect("numbers");
    let epsilon = of("epsilon").double_value(&[0]);
    let round = Round {
        natural_logits: Some(network(of("natural"))),
        natural: of("natural").shallow_clone(),
        particles: of("particles").shallow_clone(),
        start: of("start").shallow_clone(),
        threat: ThreatModel { norm: Norm::Linf, epsilon, domain: (0.0, 1.0) },
        network: &network,
        numbers: FixedNumbers(draws),
        ..Round::new(network(of("particles")), &labels)
    };
    let objective = O::new(O::Options::default()).expect("an objective");
    let loss = objective.outer(&round.batch()).expect("a loss").loss;
    assert_same(&format!("{name}.loss"), &loss.detach(), of(&format!("{name}.loss")));
    let computed = gradients(&loss.mean(Kind::Double), &weights, false).expect("gradients");
    for (parameter, gradient) in parameters.iter().zip(&computed) {
        let key = format!("{name}.{parameter}");
        assert_same(&key, gradient, of(&key));
    }
}

fn assert_same(what: &str, got: &Tensor, recorded: &Tensor) {
    assert_eq!(got.size(), recorded.size(), "{what}");
    let difference = (got - recorded).abs().max().double_value(&[]);
    assert!(difference < TOLERANCE, "{what}: a difference of {difference:e} from PyTorch");
}
