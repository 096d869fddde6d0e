// Functions of libtorch that its Rust binding lacks: autocast, the settings of the arithmetic,
// asynchronous copies to a GPU, and optimiser steps that update all weights in one call.
//
// No C++ exception may cross the boundary to Rust. Every exported function therefore works inside
// `attempt`, and returns null or an error message.

#include <ATen/Context.h>
#include <ATen/Version.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/_fused_adam.h>
#include <ATen/ops/_fused_sgd.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/DefaultDtype.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cfenv>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using Tensors = std::vector<at::Tensor>;

Tensors listed(at::Tensor* const* tensors, size_t count) {
    Tensors list;
    for (size_t index = 0; index < count; ++index) list.push_back(*tensors[index]);
    return list;
}

// The fused steps read memory in the order of the parameters' own layout. A tensor of another
// layout is copied first; gradients of convolutions' weights often have another one.
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

// Calls `work`. Returns null, or the message of its exception; the message is valid until this
// thread's next call. A buffer of fixed size needs no allocation, which could throw again.
template <typename Work> const char* attempt(Work work) noexcept {
    thread_local char message[2048];
    try {
        work();
        return nullptr;
    } catch (const std::exception& error) {
        std::snprintf(message, sizeof message, "%s", error.what());
    } catch (...) {
        std::snprintf(message, sizeof message, "%s", "an exception of unknown type");
    }
    return message;
}

// Runs `step` on parameters without gaps in memory.
template <typename Step> const char* run(at::Tensor* const* tensors, size_t count, Step step) {
    return attempt([&] {
        const Tensors parameters = listed(tensors, count);
        const Tensors dense = laid_like(parameters, parameters);
        step(dense);
        for (size_t index = 0; index < dense.size(); ++index)
            if (!dense[index].is_same(parameters[index])) parameters[index].copy_(dense[index]);
    });
}

}  // namespace

// Mirrors `Found` in arithmetic.rs. The strings are valid until this thread's next call.
struct HostArithmetic {
    const char* instruction_set;
    const char* onednn;
    const char* mkl;
    const char* openmp;
    const char* float32_matmul_precision;
    int64_t cudnn;
    bool tf32_cudnn;
    bool tf32_cublas;
    bool tf32_onednn;
    bool cudnn_deterministic;
    bool cudnn_benchmark;
    bool deterministic_algorithms;
};

namespace {

const char* name(at::Float32MatmulPrecision precision) {
    switch (precision) {
        case at::Float32MatmulPrecision::HIGHEST: return "highest";
        case at::Float32MatmulPrecision::HIGH: return "high";
        case at::Float32MatmulPrecision::MEDIUM: return "medium";
    }
    return "unknown";
}

}  // namespace

// What decides the last bits of a result: libraries, instruction set and flags. `onednn`, `mkl` and
// `openmp` are null in a libtorch without them, `cudnn` is 0 without it.
extern "C" const char* host_arithmetic(HostArithmetic* found) {
    return attempt([&] {
        thread_local std::string instruction_set, onednn, mkl, openmp;
        const auto& context = at::globalContext();
        instruction_set = at::get_cpu_capability();
        onednn = at::get_mkldnn_version();
        mkl = at::get_mkl_version();
        openmp = at::get_openmp_version();
        const auto& cuda = at::detail::getCUDAHooks();
        *found = HostArithmetic{
            /*instruction_set=*/instruction_set.c_str(),
            /*onednn=*/context.hasMKLDNN() ? onednn.c_str() : nullptr,
            /*mkl=*/context.hasMKL() ? mkl.c_str() : nullptr,
            /*openmp=*/context.hasOpenMP() ? openmp.c_str() : nullptr,
            /*float32_matmul_precision=*/name(context.float32MatmulPrecision()),
            /*cudnn=*/cuda.hasCUDA() && cuda.hasCuDNN() ? cuda.versionRuntimeCuDNN() : 0,
            /*tf32_cudnn=*/context.allowTF32CuDNN(),
            /*tf32_cublas=*/context.allowTF32CuBLAS(),
            /*tf32_onednn=*/context.allowTF32OneDNN(),
            /*cudnn_deterministic=*/context.deterministicCuDNN(),
            /*cudnn_benchmark=*/context.benchmarkCuDNN(),
            /*deterministic_algorithms=*/context.deterministicAlgorithms(),
        };
    });
}

// Mirrors `Identity` in identity.rs.
struct HostIdentity {
    const void* tensor;
    const void* data;
    int64_t version;
    uint64_t storage_users;
    bool requires_grad;
};

// Which tensor this is, and what a write to it changes.
extern "C" const char* host_identity(const at::Tensor* tensor, HostIdentity* found) {
    return attempt([&] {
        *found = HostIdentity{};
        if (!tensor->defined()) return;
        found->tensor = tensor->unsafeGetTensorImpl();
        if (tensor->has_storage()) {
            found->data = tensor->const_data_ptr();
            found->storage_users = tensor->storage().use_count();
        }
        found->version = tensor->is_inference() ? 0 : static_cast<int64_t>(tensor->_version());
        found->requires_grad = tensor->requires_grad();
    });
}

// Settings of libtorch and of the processor that change results, in the order of `SETTINGS` in
// process.rs.
extern "C" const char* host_settings(int64_t* values, size_t count) {
    return attempt([&] {
        const auto& context = at::globalContext();
        // Half of the smallest normal number is zero if such numbers are flushed.
        volatile float tiny = 1.17549435e-38f;
        const int64_t found[] = {
            context.userEnabledMkldnn(),
            context.userEnabledNNPACK(),
            context.userEnabledCuDNN(),
            context.deterministicAlgorithms(),
            context.deterministicAlgorithmsWarnOnly(),
            context.deterministicFillUninitializedMemory(),
            context.deterministicCuDNN(),
            context.benchmarkCuDNN(),
            context.deterministicMkldnn(),
            static_cast<int64_t>(context.float32MatmulPrecision()),
            context.allowTF32CuDNN(),
            context.allowTF32CuBLAS(),
            context.allowTF32OneDNN(),
            context.allowFP16ReductionCPU(),
            static_cast<int64_t>(c10::typeMetaToScalarType(c10::get_default_dtype())),
            at::autocast::is_autocast_enabled(at::kCPU),
            at::autocast::is_autocast_enabled(at::kCUDA),
            c10::InferenceMode::is_enabled(),
            tiny * 0.5f == 0.0f,
            std::fegetround(),
        };
        if (count != sizeof found / sizeof *found) throw std::logic_error("another number of settings");
        std::copy(std::begin(found), std::end(found), values);
    });
}

// `device` is a number of c10::DeviceType. libtorch refuses devices without autocast.
extern "C" const char* host_autocast_begin(int8_t device) {
    return attempt([&] {
        const auto type = static_cast<at::DeviceType>(device);
        at::autocast::set_autocast_enabled(type, true);
        at::autocast::set_autocast_dtype(type, at::kBFloat16);
    });
}

// Also drops the cached copies of the weights in bf16: the weights change before the next forward.
extern "C" const char* host_autocast_end(int8_t device) {
    return attempt([&] {
        at::autocast::set_autocast_enabled(static_cast<at::DeviceType>(device), false);
        at::autocast::clear_cache();
    });
}

// By default, convolutions of f32 on a GPU use TF32, with 10 bits of significand instead of 23, and
// cuDNN may choose algorithms whose order of summation differs between calls.
extern "C" const char* host_exact_cuda() {
    return attempt([] {
        auto& context = at::globalContext();
        context.setAllowTF32CuDNN(false);
        context.setAllowTF32CuBLAS(false);
        context.setDeterministicCuDNN(true);
        context.setBenchmarkCuDNN(false);
    });
}

// Copies a tensor to CUDA device number `index` through pinned memory, without waiting for the
// device. The caller owns the copy.
extern "C" const char* host_upload(const at::Tensor* tensor, int64_t index, at::Tensor** copy) {
    return attempt([&] {
        const at::Device device(at::kCUDA, static_cast<at::DeviceIndex>(index));
        *copy = new at::Tensor(tensor->pin_memory().to(device, /*non_blocking=*/true));
    });
}

// There are as many `moments` as parameters, or none without momentum.
extern "C" const char* host_sgd_step(at::Tensor* const* parameters, at::Tensor* const* gradients, size_t count,
                                     at::Tensor* const* moments, size_t moment_count, double learning_rate,
                                     double momentum, double weight_decay) {
    return run(parameters, count, [&](const Tensors& dense) {
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
    return run(parameters, count, [&](const Tensors& dense) {
        at::_fused_adam_(dense, laid_like(listed(gradients, count), dense), listed(first_moments, count),
                         listed(second_moments, count), /*max_exp_avg_sqs=*/{}, Tensors(count, *step),
                         learning_rate, keep_first, keep_second, weight_decay, epsilon, /*amsgrad=*/false,
                         /*maximize=*/false);
    });
}
