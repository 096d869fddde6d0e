// Convolutions in two dimensions on a CPU in f32, where there is something quicker than oneDNN: the gradient
// towards images of few channels, which every attack and every sampler asks of a network's first layer, and
// kernels of 3x3 with stride 1 (winograd.cpp).

#include "winograd.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/convolution_backward_compositeexplicitautograd_dispatch.h>
#include <ATen/ops/mkldnn_convolution_compositeexplicitautograd_dispatch.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <array>
#include <cstdint>
#include <tuple>

namespace {

constexpr int64_t kFewChannels = 4;

// A product of matrices for each image, whose rows are added up where each element of the kernel saw the
// image.
at::Tensor towards_images(const at::Tensor& towards_output, const at::Tensor& images, const at::Tensor& weight,
                          at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation) {
    const int64_t points = images.size(0), channels = images.size(1);
    const int64_t height = weight.size(2), width = weight.size(3);
    const int64_t rows = towards_output.size(2), columns = towards_output.size(3);
    const at::Tensor products =
        at::bmm(weight.reshape({weight.size(0), -1}).t().expand({points, -1, -1}), towards_output.flatten(2))
            .view({points, channels, height, width, rows, columns});
    const at::Tensor padded = at::zeros(
        {points, channels, images.size(2) + 2 * padding[0], images.size(3) + 2 * padding[1]}, images.options());
    // Every `stride`-th row or column, from the one that the kernel's element `at` saw first.
    const auto seen = [&](const at::Tensor& tensor, int64_t axis, int64_t at, int64_t count) {
        const int64_t first = at * dilation[axis];
        return tensor.slice(2 + axis, first, first + (count - 1) * stride[axis] + 1, stride[axis]);
    };
    for (int64_t i = 0; i < height; ++i)
        for (int64_t j = 0; j < width; ++j)
            seen(seen(padded, 0, i, rows), 1, j, columns).add_(products.select(2, i).select(2, j));
    return padded.slice(2, padding[0], padding[0] + images.size(2))
        .slice(3, padding[1], padding[1] + images.size(3))
        .contiguous();
}

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

Gradients convolution_backward(const at::Tensor& towards_output, const at::Tensor& input, const at::Tensor& weight,
                               at::OptionalIntArrayRef bias_sizes, at::IntArrayRef stride, at::IntArrayRef padding,
                               at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding,
                               int64_t groups, std::array<bool, 3> wanted) {
    // Whoever calls may give one number for both dimensions.
    const bool is_two_dimensional =
        input.dim() == 4 && stride.size() == 2 && padding.size() == 2 && dilation.size() == 2;
    const bool is_plain = wanted[0] && is_two_dimensional && input.numel() > 0 && groups == 1 && !transposed &&
                          is_dense_f32(input) && is_dense_f32(weight) && is_dense_f32(towards_output);
    const bool has_few_channels = is_plain && input.size(1) <= kFewChannels;
    const bool is_3x3 = is_plain && is_for_winograd(input, weight, stride, padding, dilation, groups);
    const auto of_libtorch = [&](std::array<bool, 3> wanted) {
        return at::compositeexplicitautograd::convolution_backward(towards_output, input, weight, bias_sizes, stride,
                                                                   padding, dilation, transposed, output_padding,
                                                                   groups, wanted);
    };
    if (!has_few_channels && !is_3x3) return of_libtorch(wanted);
    Gradients gradients;
    if (wanted[1] || wanted[2]) gradients = of_libtorch({false, wanted[1], wanted[2]});
    std::get<0>(gradients) =
        has_few_channels
            ? towards_images(towards_output, input, weight, stride, padding, dilation)
            // What each pixel gave, it gets back: the kernels turned round, from outputs to inputs.
            : convolution_3x3(towards_output, weight.transpose(0, 1).flip({2, 3}), std::nullopt,
                              {2 - padding[0], 2 - padding[1]});
    return gradients;
}

at::Tensor mkldnn_convolution(const at::Tensor& images, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                              at::IntArrayRef padding, at::IntArrayRef stride, at::IntArrayRef dilation,
                              int64_t groups) {
    if (is_for_winograd(images, weight, stride, padding, dilation, groups))
        return convolution_3x3(images, weight, bias, padding);
    return at::compositeexplicitautograd::mkldnn_convolution(images, weight, bias, padding, stride, dilation, groups);
}

}  // namespace

// libtorch has one entry for all devices here, and another for GPUs: none is replaced.
extern "C" void host_quicken_convolutions() noexcept {
    static const torch::Library library = [] {
        torch::Library of_cpu(torch::Library::IMPL, "aten", c10::DispatchKey::CPU, __FILE__, __LINE__);
        of_cpu.impl("convolution_backward", convolution_backward);
        of_cpu.impl("mkldnn_convolution", mkldnn_convolution);
        return of_cpu;
    }();
}
