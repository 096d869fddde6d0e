// No C++ exception may cross the boundary to Rust.

#pragma once

#include <c10/util/Exception.h>

#include <cstdio>
#include <exception>

// Calls `work`. Returns null, or the message of its exception, without the frames of libtorch's own;
// it is valid until this thread's next call. A buffer of fixed size needs no allocation, which could
// throw again.
template <typename Work> const char* attempt(Work work) noexcept {
    static thread_local char message[2048];
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
