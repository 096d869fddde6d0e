// What libtorch's Rust binding lacks: autocast for a CPU, how a GPU computes, copies to it that
// nobody waits for, and optimiser steps that move all weights in one call and one walk through memory.

#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/_fused_adam.h>
#include <ATen/ops/_fused_sgd.h>
#include <ATen/ops/empty_like.h>

#include <cstdint>
#include <string>
#include <vector>

namespace {

at::DeviceType device_of(bool cuda) { return cuda ? at::kCUDA : at::kCPU; }

using Tensors = std::vector<at::Tensor>;

Tensors listed(at::Tensor* const* tensors, size_t count) {
    Tensors list;
    for (size_t index = 0; index < count; ++index) list.push_back(*tensors[index]);
    return list;
}

// The fused steps walk plain memory, in the order in which the parameters lie there: whatever
// lies otherwise is copied. Gradients of convolutions' weights often do.
at::Tensor laid_like(const at::Tensor& tensor, const at::Tensor& parameter) {
    const bool fits = tensor.strides() == parameter.strides() && tensor.is_non_overlapping_and_dense();
    return fits ? tensor : at::empty_like(parameter).copy_(tensor);
}

Tensors laid_like(const Tensors& tensors, const Tensors& parameters) {
    Tensors laid;
    for (size_t index = 0; index < tensors.size(); ++index)
        laid.push_back(laid_like(tensors[index], parameters[index]));
    return laid;
}

// Works, and returns what libtorch refused, if anything; the message lives until this thread's next
// call.
template <typename Work> const char* attempt(Work work) {
    thread_local std::string refused;
    try {
        work();
        return nullptr;
    } catch (const std::exception& error) {
        refused = error.what();
        return refused.c_str();
    }
}

// Runs `step` on parameters that lie without gaps.
template <typename Step> const char* run(const Tensors& parameters, Step step) {
    return attempt([&] {
        const Tensors dense = laid_like(parameters, parameters);
        step(dense);
        for (size_t index = 0; index < dense.size(); ++index)
            if (!dense[index].is_same(parameters[index])) parameters[index].copy_(dense[index]);
    });
}

}  // namespace

extern "C" void host_autocast_begin(bool cuda) {
    at::autocast::set_autocast_dtype(device_of(cuda), at::kBFloat16);
    at::autocast::set_autocast_enabled(device_of(cuda), true);
}

// The weights' copies in bf16 are dropped: the weights move before the next forward.
extern "C" void host_autocast_end(bool cuda) {
    at::autocast::set_autocast_enabled(device_of(cuda), false);
    at::autocast::clear_cache();
}

// By default convolutions of f32 are TF32 on a GPU: ten bits of significand, where f32 has 23. And
// cuDNN may choose algorithms that add in another order each time.
extern "C" void host_exact_cuda() {
    at::globalContext().setAllowTF32CuDNN(false);
    at::globalContext().setAllowTF32CuBLAS(false);
    at::globalContext().setDeterministicCuDNN(true);
    at::globalContext().setBenchmarkCuDNN(false);
}

// A copy of a tensor in CUDA device number `index`'s memory, by way of memory that is pinned until it
// is there; whoever called owns it.
extern "C" const char* host_upload(const at::Tensor* tensor, int64_t index, at::Tensor** copy) {
    return attempt([&] {
        const at::Device device(at::kCUDA, static_cast<at::DeviceIndex>(index));
        *copy = new at::Tensor(tensor->pin_memory().to(device, /*non_blocking=*/true));
    });
}

// `moments` are absent (0 of them) without momentum, or as many as parameters.
extern "C" const char* host_sgd_step(at::Tensor* const* parameters, at::Tensor* const* gradients, size_t count,
                                     at::Tensor* const* moments, size_t moment_count, double learning_rate,
                                     double momentum, double weight_decay) {
    return run(listed(parameters, count), [&](const Tensors& dense) {
        at::_fused_sgd_(dense, laid_like(listed(gradients, count), dense), listed(moments, moment_count),
                        weight_decay, momentum, learning_rate, /*dampening=*/0.0, /*nesterov=*/false,
                        /*maximize=*/false, /*is_first_step=*/false);
    });
}

// `step` (f32, on the parameters' device) counts from 1.
extern "C" const char* host_adam_step(at::Tensor* const* parameters, at::Tensor* const* gradients, size_t count,
                                      at::Tensor* const* first_moments, at::Tensor* const* second_moments,
                                      const at::Tensor* step, double learning_rate, double keep_first,
                                      double keep_second, double weight_decay, double epsilon) {
    return run(listed(parameters, count), [&](const Tensors& dense) {
        at::_fused_adam_(dense, laid_like(listed(gradients, count), dense), listed(first_moments, count),
                         listed(second_moments, count), /*max_exp_avg_sqs=*/{}, Tensors(count, *step),
                         learning_rate, keep_first, keep_second, weight_decay, epsilon, /*amsgrad=*/false,
                         /*maximize=*/false);
    });
}
