//! The samplers of fast adversarial training: one step a visit, or a few. They differ in where the
//! step begins.

mod atta;
mod fgsm_pgi;
mod free;
mod mi_fgsm;
mod n_fgsm;

pub use atta::Atta;
pub use fgsm_pgi::FgsmPgi;
pub use free::Free;
pub use mi_fgsm::MiFgsm;
pub use n_fgsm::NFgsm;

use plugin_api::tch::Tensor;
use plugin_api::{Error, Result, Step};

/// The state tensors of a step, of which there are `COUNT`.
fn state<'a, const COUNT: usize>(step: &Step<'a>) -> Result<&'a [Tensor; COUNT]> {
    step.state
        .try_into()
        .map_err(|_| Error::new(format!("expected {COUNT} state tensors, got {}", step.state.len())))
}

/// Whether a particle that was visited so often (`[N, 1]`) begins anew, as it does at every
/// `period`-th visit: `[N, 1, 1, 1]`, bool.
fn begins_anew(visits: &Tensor, period: u32) -> Tensor {
    visits.remainder(f64::from(period)).eq(0.0).reshape([-1, 1, 1, 1])
}

#[cfg(test)]
mod tests {
    use plugin_api::tch::Tensor;
    use plugin_api::testing::{FixedNumbers, one_visit};
    use plugin_api::{Next, Norm, RandomSource, Sampler, ThreatModel};

    pub const LINF: ThreatModel = ThreatModel { norm: Norm::Linf, epsilon: 0.25, domain: (0.0, 1.0) };

    /// A row of pixels as one image.
    pub fn image(pixels: &[f64]) -> Tensor {
        Tensor::from_slice(pixels).reshape([1, 1, 1, -1])
    }

    /// A visit from this image, where the gradient is the same at every particle. Nothing is
    /// projected.
    pub fn visit<S: Sampler>(
        sampler: &S,
        image: &Tensor,
        gradient: &[f64],
        steps: usize,
        numbers: &[f64],
    ) -> Next {
        let gradient = super::tests::image(gradient);
        let numbers: &dyn RandomSource = &FixedNumbers(numbers.to_vec());
        let evaluate = |_: &Tensor| (Tensor::from_slice(&[0.0]), gradient.shallow_clone());
        one_visit(sampler, image, evaluate, steps, LINF, numbers).expect("a visit")
    }

    #[test]
    fn a_particle_begins_anew_at_every_period() {
        let visits = Tensor::from_slice(&[0f32, 1.0, 9.0, 10.0, 11.0, 20.0]).reshape([6, 1]);
        let anew: Vec<bool> = Vec::try_from(super::begins_anew(&visits, 10).flatten(0, -1)).expect("bools");
        assert_eq!(anew, [true, false, false, true, false, true]);
    }
}
