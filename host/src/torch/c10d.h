// What the libraries of this program share of a group of processes.

#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

struct HostStore {
    c10::intrusive_ptr<c10d::TCPStore> store;
};

struct HostGroup {
    c10::intrusive_ptr<c10d::Backend> backend;
};
