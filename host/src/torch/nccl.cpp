// Groups of processes with a GPU each, which sum through NCCL. This is a library of its own: it needs
// libtorch's CUDA half, without which the program starts, too. It is opened once that half is loaded
// (nccl.rs).
//
// No C++ exception may cross the boundary to Rust.

#define USE_C10D_NCCL

#include "attempt.h"
#include "c10d.h"

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include <chrono>

// Joins a group. Sums wait for its first one.
extern "C" __attribute__((visibility("default"))) const char* host_nccl_open(
    HostStore* store, const char* prefix, int rank, int size, int64_t milliseconds, HostGroup** opened) {
    return attempt([&] {
        auto options = c10d::ProcessGroupNCCL::Options::create();
        options->timeout = std::chrono::milliseconds(milliseconds);
        auto own = c10::make_intrusive<c10d::PrefixStore>(prefix, store->store);
        *opened = new HostGroup{c10::make_intrusive<c10d::ProcessGroupNCCL>(own, rank, size, options)};
    });
}
