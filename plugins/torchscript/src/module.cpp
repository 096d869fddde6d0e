// TorchScript modules: what tch does not bind. Buffers, facts about the code, the element of a result,
// an interpreter that does not change its arithmetic from call to call, and a network for the checks.
//
// No C++ exception may cross the boundary to Rust. Every exported function therefore works inside
// `attempt`, and returns null or an error message.

#include <ATen/Context.h>
#include <caffe2/serialize/inline_container.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/passes/inliner.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/csrc/jit/serialization/export.h>
#include <torch/csrc/jit/serialization/import.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace {

using torch::jit::Block;
using torch::jit::Module;
using torch::jit::Node;

// Calls `work`. Returns null, or the message of its exception, which is valid until this thread's
// next call.
template <typename Work> const char* attempt(Work work) noexcept {
    thread_local char message[16384];
    try {
        work();
        return nullptr;
    } catch (const c10::Error& error) {
        std::snprintf(message, sizeof message, "%s", error.what_without_backtrace());
    } catch (const std::exception& error) {
        std::snprintf(message, sizeof message, "%s", error.what());
    } catch (...) {
        std::snprintf(message, sizeof message, "%s", "an exception of unknown type");
    }
    return message;
}

// A text that a function returns; valid until this thread's next call of such a function.
const char* returned(std::string text) {
    thread_local std::string kept;
    kept = std::move(text);
    return kept.c_str();
}

// Index -1 stands for the CPU.
at::Device device_of(int64_t index) {
    return index < 0 ? at::Device(at::kCPU) : at::Device(at::kCUDA, static_cast<at::DeviceIndex>(index));
}

// Calls `work` with every node of a block and of the blocks inside it.
template <typename Work> void each_node(Block* block, const Work& work) {
    for (Node* node : block->nodes()) {
        work(node);
        for (Block* inner : node->blocks()) each_node(inner, work);
    }
}

// Weights that were one tensor in Python are two tensors with one memory after loading. This makes
// them one again. An optimiser would otherwise move the memory twice.
void tie(Module& module) {
    using Place = std::tuple<const void*, int64_t, std::vector<int64_t>, std::vector<int64_t>>;
    std::map<Place, at::Tensor> first;
    for (Module inner : module.modules()) {
        const auto type = inner.type();
        for (size_t slot = 0; slot < type->numAttributes(); ++slot) {
            if (!type->is_parameter(slot) && !type->is_buffer(slot)) continue;
            const c10::IValue value = inner._ivalue()->getSlot(slot);
            if (!value.isTensor() || !value.toTensor().defined() || value.toTensor().numel() == 0) continue;
            const at::Tensor tensor = value.toTensor();
            const Place place{tensor.storage().unsafeGetStorageImpl(), tensor.storage_offset(),
                              tensor.sizes().vec(), tensor.strides().vec()};
            const auto [known, is_new] = first.emplace(place, tensor);
            if (!is_new) inner._ivalue()->setSlot(slot, known->second);
        }
    }
}

// The tensor of a result: itself, or the element that `output` names. Without `output` (null), a
// result of one element is that element.
at::Tensor chosen(const c10::IValue& result, const char* output) {
    if (result.isTensor()) {
        if (output) throw std::runtime_error("its result is one tensor: it has no element " + std::string(output));
        return result.toTensor();
    }
    std::vector<std::pair<std::string, c10::IValue>> elements;
    if (result.isTuple()) {
        const auto tuple = result.toTuple();
        const auto schema = tuple->type()->schema();
        for (size_t index = 0; index < tuple->elements().size(); ++index) {
            const bool named = schema && index < schema->arguments().size();
            const std::string name = named ? schema->arguments()[index].name() : std::to_string(index);
            elements.emplace_back(name, tuple->elements()[index]);
        }
    } else if (result.isList()) {
        for (const c10::IValue& element : result.toList().vec())
            elements.emplace_back(std::to_string(elements.size()), element);
    } else if (result.isGenericDict()) {
        for (const auto& entry : result.toGenericDict()) {
            std::ostringstream name;
            if (entry.key().isString()) name << entry.key().toStringRef();
            else name << entry.key();
            elements.emplace_back(name.str(), entry.value());
        }
    }
    const std::string kind = result.isGenericDict() ? "a dictionary" : result.tagKind() == "None" ? "None"
                           : result.isTuple() ? "a tuple" : result.isList() ? "a list" : "a " + result.tagKind();
    std::string list;
    for (const auto& [name, value] : elements) {
        if (output ? name == output : elements.size() == 1)
            if (value.isTensor()) return value.toTensor();
        list += (list.empty() ? "" : ", ") + name + (value.isTensor() ? "" : " (no tensor)");
    }
    const std::string what = "forward returns " + kind + (list.empty() ? "" : " with the elements " + list);
    if (output) throw std::runtime_error(what + ", and no tensor `" + output + "`");
    throw std::runtime_error(what + "; expected one tensor, the logits" +
                             (list.empty() ? "" : ": choose one with the option output=NAME"));
}

}  // namespace

extern "C" {

// The names of the files in an archive of PyTorch's, one a line; an error if it is not whole.
const char* torchscript_records(const char* bytes, size_t length, const char** names) {
    return attempt([&] {
        struct Memory : caffe2::serialize::ReadAdapterInterface {
            const char* bytes;
            size_t length;
            size_t size() const override { return length; }
            size_t read(uint64_t at, void* to, size_t count, const char*) const override {
                if (at >= length) return 0;
                count = std::min<size_t>(count, length - at);
                std::copy_n(bytes + at, count, static_cast<char*>(to));
                return count;
            }
        };
        auto memory = std::make_shared<Memory>();
        memory->bytes = bytes;
        memory->length = length;
        caffe2::serialize::PyTorchStreamReader reader(memory);
        std::string list;
        for (const std::string& name : reader.getAllRecords()) list += name + "\n";
        *names = returned(list);
    });
}

// Loads a module. Its caller frees it.
const char* torchscript_load(const char* bytes, size_t length, int64_t device, Module** loaded) {
    return attempt([&] {
        std::istringstream stream(std::string(bytes, length));
        auto module = std::make_unique<Module>(torch::jit::load(stream, device_of(device)));
        if (!module->find_method("forward")) throw std::runtime_error("it has no method `forward`");
        tie(*module);
        *loaded = module.release();
    });
}

void torchscript_free(Module* module) { delete module; }

// Turns every f32 tensor of the module into f64.
const char* torchscript_double(Module* module) {
    return attempt([&] {
        at::NoGradGuard guard;
        for (const auto& attribute : module->named_attributes())
            if (attribute.value.isTensor() && attribute.value.toTensor().defined()) {
                at::Tensor tensor = attribute.value.toTensor();
                if (tensor.scalar_type() == at::kFloat) tensor.set_data(tensor.to(at::kDouble));
            }
    });
}

// What a listed tensor is to the module.
enum Role : int32_t { PARAMETER = 0, BUFFER = 1, OTHER = 2 };

// Calls `found` with the name, the role and every tensor of the module. The callee owns the tensors,
// which are not copies.
const char* torchscript_tensors(Module* module, void* list,
                                void (*found)(void*, const char*, int32_t, at::Tensor*)) {
    return attempt([&] {
        std::set<std::string> listed;
        const auto add = [&](const std::string& name, Role role, const at::Tensor& tensor) {
            if (tensor.defined() && listed.insert(name).second)
                found(list, name.c_str(), role, new at::Tensor(tensor));
        };
        for (const auto& parameter : module->named_parameters()) add(parameter.name, PARAMETER, parameter.value);
        for (const auto& buffer : module->named_buffers()) add(buffer.name, BUFFER, buffer.value);
        for (const auto& attribute : module->named_attributes())
            if (attribute.value.isTensor()) add(attribute.name, OTHER, attribute.value.toTensor());
    });
}

// The attributes that are no tensors and no modules, and their values, one a line.
const char* torchscript_attributes(Module* module, const char** text) {
    return attempt([&] {
        std::ostringstream lines;
        for (const auto& attribute : module->named_attributes()) {
            const c10::IValue& value = attribute.value;
            const auto dot = attribute.name.rfind('.');
            const std::string name = attribute.name.substr(dot == std::string::npos ? 0 : dot + 1);
            if (value.isTensor() || value.isModule() || value.isObject() || name == "training") continue;
            std::ostringstream shown;
            shown << value;
            std::string line = shown.str();
            for (char& letter : line)
                if (letter == '\n') letter = ' ';
            lines << attribute.name << '=' << line << '\n';
        }
        *text = returned(lines.str());
    });
}

// Mirrors `Facts` in module.rs.
struct TorchscriptFacts {
    // Whether the code asks for the mode, training or evaluation.
    bool reads_mode;
    // Whether it has dropout or normalisation by statistics.
    bool has_modes;
    // Whether it has constant tensors of real numbers with more than one element.
    bool has_constant_weights;
    // The devices that it names, separated by commas.
    const char* devices;
};

const char* torchscript_facts(Module* module, TorchscriptFacts* facts) {
    return attempt([&] {
        const auto graph = module->get_method("forward").graph()->copy();
        torch::jit::Inline(*graph);
        std::set<std::string> devices;
        *facts = TorchscriptFacts{};
        each_node(graph->block(), [&](Node* node) {
            const std::string kind = node->kind().toQualString();
            if (kind == "prim::GetAttr" && node->s(c10::attr::name) == "training") facts->reads_mode = true;
            if (kind.find("dropout") != std::string::npos || kind == "aten::batch_norm" ||
                kind == "aten::instance_norm")
                facts->has_modes = true;
            if (kind != "prim::Constant") return;
            const auto constant = torch::jit::toIValue(node->output());
            if (!constant) return;
            if (constant->isDevice()) devices.insert(constant->toDevice().str());
            if (constant->isTensor() && constant->toTensor().defined() && constant->toTensor().numel() > 1 &&
                constant->toTensor().is_floating_point())
                facts->has_constant_weights = true;
        });
        std::string list;
        for (const std::string& device : devices) list += (list.empty() ? "" : ", ") + device;
        facts->devices = returned(list);
    });
}

const char* torchscript_set_training(Module* module, bool training) {
    return attempt([&] { module->train(training); });
}

// The logits of images; `output` is the name of the element of a result that has several, or null.
// The interpreter's optimiser is off: it measures the first calls and rewrites the code for the later
// ones, whose last bits may then differ, so that a resumed run would not repeat the first one.
const char* torchscript_forward(Module* module, const at::Tensor* images, const char* output,
                                at::Tensor** logits) {
    return attempt([&] {
        torch::jit::GraphOptimizerEnabledGuard unoptimised(false);
        const c10::IValue result = module->forward({*images});
        *logits = new at::Tensor(chosen(result, output));
    });
}

// The state of the generator of a device's random numbers.
const char* torchscript_random_state(int64_t device, at::Tensor** state) {
    return attempt([&] {
        at::Generator generator = at::globalContext().defaultGenerator(device_of(device));
        std::lock_guard<std::mutex> lock(generator.mutex());
        *state = new at::Tensor(generator.get_state());
    });
}

const char* torchscript_set_random_state(int64_t device, const at::Tensor* state) {
    return attempt([&] {
        at::Generator generator = at::globalContext().defaultGenerator(device_of(device));
        std::lock_guard<std::mutex> lock(generator.mutex());
        generator.set_state(*state);
    });
}

// A network in TorchScript, as the contents of a file: a linear layer of `hidden` units with a ReLU
// and another one. `weights` are those of the first layer [hidden, features] and of the second one
// [classes, hidden]. Calls `written` once.
const char* torchscript_example(const at::Tensor* first, const at::Tensor* second, void* file,
                                void (*written)(void*, const char*, size_t)) {
    return attempt([&] {
        Module module("__torch__.Example");
        module.register_parameter("first", *first, /*is_buffer=*/false);
        module.register_parameter("second", *second, /*is_buffer=*/false);
        module.define(R"(
def forward(self, images):
    return torch.matmul(torch.relu(torch.matmul(images.flatten(1), self.first.t())), self.second.t())
)");
        std::ostringstream stream;
        module.save(stream);
        const std::string bytes = stream.str();
        written(file, bytes.data(), bytes.size());
    });
}

}  // extern "C"
