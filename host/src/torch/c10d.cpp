// Processes that work on one run together, by libtorch's own c10d: a store of keys that all of them
// see, sums of tensors over all of them with Gloo, and gradients that are summed in buckets while
// the backward pass still runs.
//
// No C++ exception may cross the boundary to Rust. Every exported function therefore works inside
// `attempt`, and returns null or an error message.

#include "attempt.h"

#include <cstddef>
#include <cstdint>

#ifdef HOST_GLOO

#define USE_C10D_GLOO
#include "c10d.h"

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Logging.h>

#include <chrono>
#include <cstdlib>
#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

struct HostSum {
    // Its memory belongs to the sum until that is done.
    std::vector<at::Tensor> tensors;
    c10::intrusive_ptr<c10d::Work> work;
};

namespace {

// Gradients that are summed in one call. They lie in one tensor, each in its parameter's layout.
struct Bucket {
    at::Tensor flat;
    std::vector<size_t> members;
    size_t missing = 0;
    c10::intrusive_ptr<c10d::Work> work;
};

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

std::vector<uint8_t> bytes_of(const uint8_t* bytes, size_t length) {
    return std::vector<uint8_t>(bytes, bytes + length);
}

}  // namespace

// Sums the gradients of these parameters over all processes.
struct HostReducer {
    c10::intrusive_ptr<c10d::Backend> backend;
    std::vector<at::Tensor> parameters;
    std::vector<at::Tensor> views;
    std::vector<Bucket> buckets;
    std::vector<size_t> bucket_of;
    std::vector<bool> arrived;
    size_t next = 0;

    // The last parameters have their gradients first. The first bucket is small, so that
    // communication begins early.
    HostReducer(c10::intrusive_ptr<c10d::Backend> group, std::vector<at::Tensor> listed, size_t first, size_t other)
        : backend(std::move(group)), parameters(std::move(listed)), views(parameters.size()),
          bucket_of(parameters.size()), arrived(parameters.size()) {
        size_t bytes = 0;
        for (size_t place = parameters.size(); place-- > 0;) {
            const at::Tensor& parameter = parameters[place];
            const bool is_full = bytes >= (buckets.size() == 1 ? first : other);
            const bool fits = !buckets.empty() && !is_full &&
                parameters[buckets.back().members.front()].options().type_equal(parameter.options());
            if (!fits) {
                buckets.emplace_back();
                bytes = 0;
            }
            buckets.back().members.push_back(place);
            bucket_of[place] = buckets.size() - 1;
            bytes += parameter.nbytes();
        }
        for (Bucket& bucket : buckets) {
            int64_t numbers = 0;
            for (size_t place : bucket.members) numbers += parameters[place].numel();
            bucket.flat = at::empty({numbers}, parameters[bucket.members.front()].options().requires_grad(false));
            int64_t offset = 0;
            for (size_t place : bucket.members) {
                const at::Tensor& parameter = parameters[place];
                views[place] = parameter.is_non_overlapping_and_dense()
                    ? bucket.flat.as_strided(parameter.sizes(), parameter.strides(), offset)
                    : bucket.flat.narrow(0, offset, parameter.numel()).view(parameter.sizes());
                offset += parameter.numel();
            }
        }
    }

    void begin() {
        next = 0;
        arrived.assign(parameters.size(), false);
        for (Bucket& bucket : buckets) {
            bucket.missing = bucket.members.size();
            bucket.work.reset();
        }
    }

    // A parameter's gradient is known; it is undefined where the loss does not depend on it.
    void arrive(size_t place, const at::Tensor& gradient) {
        if (arrived[place]) return;
        arrived[place] = true;
        at::NoGradGuard no_grad;
        if (!gradient.defined())
            views[place].zero_();
        else
            views[place].copy_(gradient.is_sparse() ? gradient.to_dense() : gradient);
        --buckets[bucket_of[place]].missing;
        // All processes sum the buckets in one order.
        for (; next < buckets.size() && buckets[next].missing == 0; ++next) {
            std::vector<at::Tensor> tensors{buckets[next].flat};
            buckets[next].work = backend->allreduce(tensors);
        }
    }
};

extern "C" const char* host_store_open(
    const char* address, uint16_t port, bool serves, int64_t milliseconds, HostStore** opened) {
    return attempt([&] {
        // What c10d logs, with its frames, is in its exceptions, too.
        if (std::getenv("TORCH_CPP_LOG_LEVEL") == nullptr) FLAGS_caffe2_log_level = c10::GLOG_FATAL;
        c10d::TCPStoreOptions options;
        options.port = port;
        options.isServer = serves;
        options.waitWorkers = false;
        options.timeout = std::chrono::milliseconds(milliseconds);
        *opened = new HostStore{c10::make_intrusive<c10d::TCPStore>(address, options)};
    });
}

extern "C" void host_store_close(HostStore* store) {
    attempt([&] { delete store; });
}

extern "C" const char* host_store_set(HostStore* store, const char* key, const uint8_t* bytes, size_t length) {
    return attempt([&] { store->store->set(key, bytes_of(bytes, length)); });
}

// The value is null if there is none yet; otherwise it is valid until this thread's next call.
extern "C" const char* host_store_get(HostStore* store, const char* key, const uint8_t** bytes, size_t* length) {
    return attempt([&] {
        thread_local std::vector<uint8_t> value;
        *bytes = nullptr;
        if (!store->store->check({key})) return;
        value = store->store->get(key);
        // An empty vector may have no memory.
        value.reserve(1);
        *bytes = value.data();
        *length = value.size();
    });
}

// Joins a group. The other processes reach this one at `address`, or at the addresses of `interfaces`,
// names separated by commas. One of both is null.
extern "C" const char* host_group_open(
    HostStore* store, const char* prefix, int rank, int size, int64_t milliseconds, const char* interfaces,
    const char* address, HostGroup** opened) {
    return attempt([&] {
        const auto timeout = std::chrono::milliseconds(milliseconds);
        auto options = c10d::ProcessGroupGloo::Options::create(timeout);
        if (interfaces != nullptr) {
            std::istringstream names(interfaces);
            for (std::string name; std::getline(names, name, ',');)
                options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForInterface(name));
        } else {
            options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(address));
        }
        auto own = c10::make_intrusive<c10d::PrefixStore>(prefix, store->store);
        *opened = new HostGroup{c10::make_intrusive<c10d::ProcessGroupGloo>(own, rank, size, options)};
    });
}

// Ends the threads of a group that is not used any more.
extern "C" const char* host_group_shut_down(HostGroup* group) {
    return attempt([&] { group->backend->shutdown(); });
}

// Begins to sum a tensor over all processes, in place.
extern "C" const char* host_sum_begin(HostGroup* group, at::Tensor* tensor, HostSum** begun) {
    return attempt([&] {
        auto sum = std::make_unique<HostSum>();
        sum->tensors.push_back(*tensor);
        sum->work = group->backend->allreduce(sum->tensors);
        *begun = sum.release();
    });
}

// Waits until a sum is done, and frees it.
extern "C" const char* host_sum_wait(HostSum* sum) {
    return attempt([&] {
        const std::unique_ptr<HostSum> owned(sum);
        owned->work->wait();
    });
}

extern "C" const char* host_reducer_open(
    HostGroup* group, at::Tensor* const* parameters, size_t count, size_t first_bytes, size_t other_bytes,
    HostReducer** opened) {
    return attempt([&] {
        std::vector<at::Tensor> listed;
        for (size_t place = 0; place < count; ++place) listed.push_back(*parameters[place]);
        *opened = new HostReducer(group->backend, std::move(listed), first_bytes, other_bytes);
    });
}

extern "C" void host_reducer_close(HostReducer* reducer) {
    attempt([&] { delete reducer; });
}

// The gradients of a scalar loss: those of the parameters, summed over all processes, in memory
// that the next call overwrites; and that of `leaf`, of this process alone, if it is not null. A
// null loss has gradients of zero. `waited` is the time after the backward pass; `waits` is 1
// meanwhile.
extern "C" const char* host_reducer_gradients(
    HostReducer* reducer, at::Tensor* loss, at::Tensor* leaf, at::Tensor** gradients, at::Tensor** of_leaf,
    double* waited, uint8_t* waits) {
    return attempt([&] {
        reducer->begin();
        const size_t count = reducer->parameters.size();
        *of_leaf = nullptr;
        if (loss != nullptr) {
            std::vector<at::Tensor> inputs = reducer->parameters;
            if (leaf != nullptr) inputs.push_back(*leaf);
            // Hooks are taken off again, whatever happens.
            struct Hooks {
                std::vector<std::pair<at::Tensor, unsigned>> added;
                ~Hooks() {
                    for (auto& [tensor, hook] : added) tensor.remove_hook(hook);
                }
            } hooks;
            for (size_t place = 0; place < count; ++place) {
                const auto arrive = [reducer, place](const at::Tensor& gradient) {
                    reducer->arrive(place, gradient);
                };
                hooks.added.emplace_back(inputs[place], inputs[place].register_hook(arrive));
            }
            const auto found = torch::autograd::grad({*loss}, inputs, {}, false, false, true);
            for (size_t place = 0; place < count; ++place) reducer->arrive(place, found[place]);
            if (leaf != nullptr && found[count].defined()) *of_leaf = new at::Tensor(found[count]);
        } else {
            for (size_t place = 0; place < count; ++place) reducer->arrive(place, at::Tensor());
        }
        const auto start = Clock::now();
        struct Waiting {
            uint8_t* flag;
            explicit Waiting(uint8_t* given) : flag(given) { __atomic_store_n(flag, 1, __ATOMIC_RELAXED); }
            ~Waiting() { __atomic_store_n(flag, 0, __ATOMIC_RELAXED); }
        };
        {
            const Waiting waiting(waits);
            for (Bucket& bucket : reducer->buckets) bucket.work->wait();
        }
        *waited = seconds_since(start);
        for (size_t place = 0; place < count; ++place) gradients[place] = new at::Tensor(reducer->views[place]);
    });
}

extern "C" bool host_has_groups() { return true; }

#else

struct HostStore;
struct HostGroup;
struct HostSum;
struct HostReducer;
namespace at {
class Tensor;
}

namespace {
const char* const missing = "this program was built without Gloo";
}

extern "C" const char* host_store_open(const char*, uint16_t, bool, int64_t, HostStore**) { return missing; }
extern "C" void host_store_close(HostStore*) {}
extern "C" const char* host_store_set(HostStore*, const char*, const uint8_t*, size_t) { return missing; }
extern "C" const char* host_store_get(HostStore*, const char*, const uint8_t**, size_t*) { return missing; }
extern "C" const char* host_group_open(
    HostStore*, const char*, int, int, int64_t, const char*, const char*, HostGroup**) {
    return missing;
}
extern "C" const char* host_group_shut_down(HostGroup*) { return missing; }
extern "C" const char* host_sum_begin(HostGroup*, at::Tensor*, HostSum**) { return missing; }
extern "C" const char* host_sum_wait(HostSum*) { return missing; }
extern "C" const char* host_reducer_open(
    HostGroup*, at::Tensor* const*, size_t, size_t, size_t, HostReducer**) {
    return missing;
}
extern "C" void host_reducer_close(HostReducer*) {}
extern "C" const char* host_reducer_gradients(
    HostReducer*, at::Tensor*, at::Tensor*, at::Tensor**, at::Tensor**, double*, uint8_t*) {
    return missing;
}
extern "C" bool host_has_groups() { return false; }

#endif
