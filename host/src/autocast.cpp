// libtorch's autocast for a device, which its Rust binding offers for CUDA alone.

#include <ATen/autocast_mode.h>

namespace {
at::DeviceType device_of(bool cuda) { return cuda ? at::kCUDA : at::kCPU; }
}

extern "C" void host_autocast_begin(bool cuda) {
    at::autocast::set_autocast_dtype(device_of(cuda), at::kBFloat16);
    at::autocast::set_autocast_enabled(device_of(cuda), true);
}

// The weights' copies in bf16 are dropped: the weights move before the next forward.
extern "C" void host_autocast_end(bool cuda) {
    at::autocast::set_autocast_enabled(device_of(cuda), false);
    at::autocast::clear_cache();
}
