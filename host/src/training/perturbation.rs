//! Adversarial weight perturbation (Wu, Xia and Wang 2020): the weights descend on the loss at the
//! weights that are worst within a small distance of them.

use tch::{Kind, Tensor};

/// Weights that are moved, until [`Perturbation::end`] puts them back.
pub(super) struct Perturbation {
    /// The weights, and where they were.
    moved: Vec<(Tensor, Tensor)>,
}

impl Perturbation {
    /// Moves each layer's weights up the loss by `gamma` times their own length: w + gamma |w| g / |g|
    /// (equations 8 and 10 of the paper, with one step). As in the authors' code, weights of fewer
    /// than two dimensions (biases, normalisation) stay, and so does a layer without a gradient.
    pub fn begin(parameters: &[Tensor], gradients: &[Tensor], gamma: f64) -> Self {
        let _guard = tch::no_grad_guard();
        let moving = parameters
            .iter()
            .zip(gradients)
            .filter(|(weights, gradient)| weights.dim() > 1 && gradient.defined());
        let moved = moving.map(|(weights, gradient)| {
            let before = weights.copy();
            let length = |tensor: &Tensor| tensor.norm_scalaropt_dtype(2.0, Kind::Float);
            // A gradient of zero has no direction, and moves nothing.
            let direction = gradient / (length(gradient) + 1e-20);
            let _ = weights.shallow_clone().g_add_(&(direction * (length(weights) * gamma)));
            (weights.shallow_clone(), before)
        });
        Self { moved: moved.collect() }
    }

    /// Puts the weights back, bit for bit.
    pub fn end(self) {
        let _guard = tch::no_grad_guard();
        for (mut weights, before) in self.moved {
            weights.copy_(&before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_layer_moves_by_gamma_times_its_length_along_its_gradient() {
        // |w| = 5, |g| = 2: w + 0.1 * 5 * (0, 1).
        let weights = Tensor::from_slice(&[3.0f32, 4.0]).reshape([1, 2]);
        let bias = Tensor::from_slice(&[1.0f32]);
        let still = Tensor::from_slice(&[1.0f32, 2.0]).reshape([2, 1]);
        let gradients = [
            Tensor::from_slice(&[0.0f32, 2.0]).reshape([1, 2]),
            Tensor::from_slice(&[1.0f32]),
            Tensor::zeros([2, 1], tch::kind::FLOAT_CPU),
        ];
        let parameters = [weights.shallow_clone(), bias.shallow_clone(), still.shallow_clone()];
        let values = |tensor: &Tensor| Vec::<f32>::try_from(tensor.flatten(0, -1)).expect("f32");
        let moved = Perturbation::begin(&parameters, &gradients, 0.1);
        assert_eq!(values(&weights), [3.0, 4.5]);
        assert_eq!((values(&bias), values(&still)), (vec![1.0], vec![1.0, 2.0]));
        moved.end();
        assert_eq!(values(&weights), [3.0, 4.0]);
    }
}
