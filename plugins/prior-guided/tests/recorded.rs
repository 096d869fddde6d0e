//! Losses and gradients as PyTorch computes them.

#[test]
fn losses_and_gradients_equal_those_of_pytorch() {
    replay::assert_losses_as_recorded::<prior_guided::PriorGuided>("prior_guided");
}
