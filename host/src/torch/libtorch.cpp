// Functions of libtorch that its Rust binding lacks: autocast, the settings of the arithmetic,
// asynchronous copies to a GPU, optimiser steps that update all weights in one call, and TorchScript
// modules that are made of a network's forward pass or get other weights.
//
// No C++ exception may cross the boundary to Rust. Every exported function therefore works inside
// `attempt`, and returns null or an error message.

#include "attempt.h"

#include <ATen/Context.h>
#include <ATen/Version.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/_foreach_lerp.h>
#include <ATen/ops/_fused_adam.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/_fused_sgd.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/DefaultDtype.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/serialization/import.h>

#include <algorithm>
#include <cfenv>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <iterator>
#include <map>
#include <memory>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
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

// TF32 in convolutions and matrix products of f32 on a GPU, for updates of training that ask for it.
extern "C" const char* host_allow_tf32(bool allowed) {
    return attempt([&] {
        auto& context = at::globalContext();
        context.setAllowTF32CuDNN(allowed);
        context.setAllowTF32CuBLAS(allowed);
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

// `step` (f32, on the parameters' device) counts from 1. `decoupled`: weight decay as in AdamW.
extern "C" const char* host_adam_step(at::Tensor* const* parameters, at::Tensor* const* gradients, size_t count,
                                      at::Tensor* const* first_moments, at::Tensor* const* second_moments,
                                      const at::Tensor* step, double learning_rate, double keep_first,
                                      double keep_second, double weight_decay, bool decoupled,
                                      double epsilon) {
    return run(parameters, count, [&](const Tensors& dense) {
        const auto step_of = [&](auto fused) {
            fused(dense, laid_like(listed(gradients, count), dense), listed(first_moments, count),
                  listed(second_moments, count), /*max_exp_avg_sqs=*/Tensors{}, Tensors(count, *step),
                  learning_rate, keep_first, keep_second, weight_decay, epsilon, /*amsgrad=*/false,
                  /*maximize=*/false);
        };
        if (decoupled) step_of([](auto&&... arguments) { at::_fused_adamw_(arguments...); });
        else step_of([](auto&&... arguments) { at::_fused_adam_(arguments...); });
    });
}

// Moves every average this share of the way to its weights, in one call.
extern "C" const char* host_lerp(at::Tensor* const* averages, at::Tensor* const* weights, size_t count, double share) {
    return attempt([&] {
        if (count > 0) at::_foreach_lerp_(listed(averages, count), listed(weights, count), share);
    });
}

namespace {

using torch::jit::Module;

// The module of this name inside `root`, which is made if it is missing.
Module& submodule(std::map<std::string, Module>& modules, const std::string& path) {
    const auto known = modules.find(path);
    if (known != modules.end()) return known->second;
    const size_t dot = path.rfind('.');
    Module& parent = submodule(modules, dot == std::string::npos ? "" : path.substr(0, dot));
    Module child(c10::QualifiedName("__torch__.adversarial_transport.Module"),
                 parent._ivalue()->compilation_unit(), /*shouldMangle=*/true);
    child.register_attribute("training", c10::BoolType::get(), false);
    parent.register_module(path.substr(dot == std::string::npos ? 0 : dot + 1), child);
    return modules.emplace(path, child).first->second;
}

// What a graph has of the tensors that it was traced with and another caller may want otherwise: a
// device, a dtype, or a tensor with a device of its own that no operation brings to that of another.
void find_fixed(torch::jit::Block* block, std::set<std::string>& found) {
    for (torch::jit::Node* node : block->nodes()) {
        const auto* schema = node->maybeSchema();
        for (size_t index = 0; index < node->inputs().size(); ++index) {
            const auto value = torch::jit::toIValue(node->inputs()[index]);
            if (!value) continue;
            const std::string operation = node->kind().toQualString();
            const bool is_named = schema && index < schema->arguments().size();
            const std::string name = is_named ? schema->arguments()[index].name() : "";
            if (value->isDevice()) found.insert("the device " + value->toDevice().str() + " in " + operation);
            else if (name == "dtype" && value->isInt())
                found.insert(std::string("the dtype ") + c10::toString(static_cast<at::ScalarType>(value->toInt())) +
                             " in " + operation);
            else if (value->isTensor() && value->toTensor().dim() > 0 && operation != "aten::type_as")
                found.insert("a constant tensor in " + operation);
        }
        for (torch::jit::Block* inner : node->blocks()) find_fixed(inner, found);
    }
}

// The bytes of a module's file. The caller owns the tensor.
at::Tensor* file_of(const Module& module) {
    std::ostringstream stream;
    module.save(stream);
    const std::string bytes = stream.str();
    at::Tensor copy = at::empty({static_cast<int64_t>(bytes.size())}, at::kByte);
    std::copy(bytes.begin(), bytes.end(), reinterpret_cast<char*>(copy.mutable_data_ptr<uint8_t>()));
    return new at::Tensor(std::move(copy));
}

}  // namespace

// A forward pass of the caller: logits of images, owned by this file; null if it failed.
extern "C" typedef at::Tensor* (*HostForward)(void* context, const at::Tensor* images);

// Traces a forward pass, in evaluation mode, into a TorchScript module that has these tensors as
// parameters (those that need a gradient) and buffers, under their names. `file` gets the bytes of
// its file, which the caller owns; `fixed` what is fixed in it, a line each, valid until this
// thread's next call.
extern "C" const char* host_trace(const char* const* names, at::Tensor* const* tensors, size_t count,
                                  const at::Tensor* images, HostForward forward, void* context, at::Tensor** file,
                                  const char** fixed) {
    return attempt([&] {
        std::map<std::string, Module> modules;
        Module root(c10::QualifiedName("__torch__.adversarial_transport.Network"),
                    std::make_shared<torch::jit::CompilationUnit>(), /*shouldMangle=*/true);
        root.register_attribute("training", c10::BoolType::get(), false);
        modules.emplace("", root);
        for (size_t index = 0; index < count; ++index) {
            const std::string name = names[index];
            const size_t dot = name.rfind('.');
            Module& owner = submodule(modules, dot == std::string::npos ? "" : name.substr(0, dot));
            const std::string last = name.substr(dot == std::string::npos ? 0 : dot + 1);
            const at::Tensor& tensor = *tensors[index];
            if (tensor.requires_grad()) owner.register_parameter(last, tensor, /*is_buffer=*/false);
            else owner.register_buffer(last, tensor);
        }
        const auto traced = [&](torch::jit::Stack inputs) -> torch::jit::Stack {
            const at::Tensor given = inputs.at(0).toTensor();
            const std::unique_ptr<at::Tensor> logits(forward(context, &given));
            if (!logits) throw std::runtime_error("the forward pass failed");
            return {*logits};
        };
        const auto unnamed = [](const at::Tensor&) { return std::string(); };
        const auto [state, outputs] = torch::jit::tracer::trace({*images}, traced, unnamed, /*strict=*/true,
                                                                /*force_outplace=*/false, &root, {"images"});
        std::set<std::string> found;
        find_fixed(state->graph->block(), found);
        thread_local std::string lines;
        lines.clear();
        for (const std::string& line : found) lines += line + "\n";
        *fixed = lines.c_str();
        const c10::QualifiedName method(*root.type()->name(), "forward");
        root.type()->addMethod(root._ivalue()->compilation_unit()->create_function(method, state->graph));
        *file = file_of(root);
    });
}

// A TorchScript file with other values of its parameters and buffers of these names. `file` gets the
// bytes, which the caller owns.
extern "C" const char* host_refill(const char* bytes, size_t length, const char* const* names,
                                   at::Tensor* const* tensors, size_t count, at::Tensor** file) {
    return attempt([&] {
        std::istringstream stream(std::string(bytes, length));
        Module module = torch::jit::load(stream, at::Device(at::kCPU));
        std::map<std::string, at::Tensor> inside;
        for (const auto& entry : module.named_parameters(/*recurse=*/true)) inside[entry.name] = entry.value;
        for (const auto& entry : module.named_buffers(/*recurse=*/true)) inside[entry.name] = entry.value;
        for (size_t index = 0; index < count; ++index) {
            const auto target = inside.find(names[index]);
            if (target == inside.end())
                throw std::runtime_error("it has no tensor of the name " + std::string(names[index]));
            if (target->second.sizes() != tensors[index]->sizes())
                throw std::runtime_error("its tensor " + target->first + " has another shape");
            target->second.set_data(tensors[index]->detach().to(target->second.options()).clone());
        }
        module.eval();
        *file = file_of(module);
    });
}
