//! Quicker convolutions on a CPU.

unsafe extern "C" {
    fn host_quicken_convolutions();
}

/// Has libtorch compute two kinds of convolution in another way than by oneDNN, in f32 on a CPU, for
/// every model in this process, a plugin's or not: gradients towards images of up to four channels
/// by a product of matrices (oneDNN pads the channels to sixteen and takes several times as long);
/// and kernels of 3x3 with stride 1, on processors with AVX-512, by Winograd's algorithm F(2x2, 3x3)
/// (Lavin and Gray, *Fast Algorithms for Convolutional Neural Networks*, 2016), with 16 products for
/// what takes 36. Results round otherwise, no worse than by an order of magnitude.
pub fn quicken() {
    // SAFETY: it enters a function into libtorch's table, once.
    unsafe { host_quicken_convolutions() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind, Tensor};

    /// A convolution, and the gradients of a weighted sum of it towards images, weight and bias.
    fn results(
        (images, weight, bias): (&Tensor, &Tensor, &Tensor),
        (stride, padding, dilation): ([i64; 2], [i64; 2], [i64; 2]),
        kind: Kind,
    ) -> Vec<Tensor> {
        let leaf = |tensor: &Tensor| tensor.to_kind(kind).detach().set_requires_grad(true);
        let leaves = [leaf(images), leaf(weight), leaf(bias)];
        let output = leaves[0].conv2d(&leaves[1], Some(&leaves[2]), stride, padding, dilation, 1);
        let weights = Tensor::arange(output.numel() as i64, (Kind::Double, Device::Cpu)).sin();
        let sum = (&output * weights.to_kind(kind).view_as(&output)).sum(kind);
        let gradients = Tensor::run_backward(&[sum], &leaves, false, false);
        std::iter::once(output.detach()).chain(gradients).collect()
    }

    #[test]
    fn results_are_those_of_f64() {
        // It may be asked for twice.
        quicken();
        quicken();
        // Images (N, C, H, W), weights (O, height, width), strides, paddings, dilations. In f64 libtorch's own
        // kernels serve.
        let cases = [
            ([5, 1, 28, 28], [32, 3, 3], [1, 1], [1, 1], [1, 1]),
            ([2, 1, 28, 28], [8, 5, 5], [1, 1], [0, 0], [1, 1]),
            ([3, 3, 9, 14], [4, 3, 3], [2, 2], [1, 1], [1, 1]),
            ([1, 4, 11, 7], [3, 2, 4], [3, 2], [2, 1], [1, 2]),
            ([2, 2, 5, 6], [2, 3, 3], [1, 2], [4, 3], [2, 1]),
            ([2, 3, 8, 8], [5, 1, 1], [2, 2], [0, 0], [1, 1]),
            // Of 3x3 and many channels: an even number of pixels and an odd one, every padding, panels of 64
            // outputs and of 16.
            ([70, 64, 14, 14], [64, 3, 3], [1, 1], [1, 1], [1, 1]),
            ([41, 32, 7, 9], [112, 3, 3], [1, 1], [0, 2], [1, 1]),
            ([3, 48, 33, 20], [32, 3, 3], [1, 1], [2, 1], [1, 1]),
            ([40, 64, 3, 4], [32, 3, 3], [1, 1], [1, 0], [1, 1]),
            // Neither.
            ([2, 5, 8, 8], [3, 3, 3], [1, 1], [1, 1], [1, 1]),
            ([70, 64, 14, 14], [64, 3, 3], [2, 2], [1, 1], [1, 1]),
        ];
        for (image, [outputs, height, width], stride, padding, dilation) in cases {
            tch::manual_seed(1);
            let draw = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
            let (images, weight, bias) =
                (draw(&image), draw(&[outputs, image[1], height, width]), draw(&[outputs]));
            // In order, and as models' weights lie in training.
            for channels_last in [false, true] {
                let laid = |tensor: &Tensor| match channels_last {
                    true => tensor.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]),
                    false => tensor.shallow_clone(),
                };
                let of = |kind| {
                    results((&laid(&images), &laid(&weight), &bias), (stride, padding, dilation), kind)
                };
                // Gradients towards weight and bias are libtorch's own, sums over thousands of pixels. With many
                // channels so is everything, and errors are told as shares of what is summed up.
                let has_many_channels = image[1] > 5;
                let tolerances = match has_many_channels {
                    true => [1e-5, 1e-5, 1e-4, 1e-4],
                    false => [1e-5, 1e-5, 1e-3, 1e-3],
                };
                for ((quick, exact), tolerance) in
                    of(Kind::Float).iter().zip(of(Kind::Double)).zip(tolerances)
                {
                    assert_eq!(quick.size(), exact.size());
                    let size = exact.square().mean(Kind::Double).sqrt().double_value(&[]);
                    let unit = if has_many_channels { size } else { 1.0 };
                    let largest = (quick - &exact).abs().max().double_value(&[]) / unit;
                    assert!(
                        largest < tolerance,
                        "{image:?} {outputs} {height} {width}, channels last {channels_last}: {largest:e}"
                    );
                }
            }
        }
    }

    #[test]
    fn one_number_may_stand_for_both_dimensions() {
        quicken();
        let draw = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
        let (images, weight) = (draw(&[2, 1, 9, 9]).set_requires_grad(true), draw(&[3, 1, 3, 3]));
        let gradient = |stride: &[i64], padding: &[i64], dilation: &[i64]| {
            let output = images.conv2d::<Tensor>(&weight, None, stride, padding, dilation, 1);
            Tensor::run_backward(&[output.square().sum(Kind::Float)], &[&images], false, false).remove(0)
        };
        let difference = gradient(&[2], &[1], &[1]) - gradient(&[2, 2], &[1, 1], &[1, 1]);
        assert!(difference.abs().max().double_value(&[]) < 1e-4);
    }
}
