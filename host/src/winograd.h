#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

inline bool is_dense_f32(const at::Tensor& tensor) {
    return tensor.scalar_type() == at::kFloat && tensor.layout() == at::kStrided;
}

// Whether `convolution_3x3` takes such a convolution, and is likely to be quicker than oneDNN.
bool is_for_winograd(const at::Tensor& images, const at::Tensor& weight, at::IntArrayRef stride,
                     at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups);

// Images (N, C, H, W) convolved with a weight (O, C, 3, 3), with stride 1: (N, O, H + 2 padding - 2, W + 2
// padding - 2), the channels last in memory.
at::Tensor convolution_3x3(const at::Tensor& images, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                           at::IntArrayRef padding);
