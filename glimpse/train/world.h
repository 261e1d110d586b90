#pragma once

#include <ATen/ATen.h>

#include <memory>
#include <string>
#include <vector>

#include "glimpse/base/check.h"

namespace glimpse {

/// Another process of the run has ended or cannot be reached any more.
struct LostProcess : Error {
  using Error::Error;
};

/// The device of this process: "cuda" under a launcher is the one that LOCAL_RANK numbers.
std::string local_device(const std::string& device);

/// The processes that train together, joined by libtorch's process group (Gloo on CPU, NCCL on CUDA).
class World {
 public:
  /// As the launcher's RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT say (torchrun sets them); one process
  /// when WORLD_SIZE is unset or 1. Error when the others cannot be
  /// reached.
  static std::unique_ptr<World> from_environment(const at::Device& device);
  virtual ~World() = default;

  int rank() const { return rank_; }
  int size() const { return size_; }
  bool first() const { return rank_ == 0; }

  /// Sums the tensors over all processes, in place. Throws LostProcess.
  virtual void sum(std::vector<at::Tensor>&) {}
  /// Gives all processes the tensors of the first, in place. Throws LostProcess.
  void share(std::vector<at::Tensor>& tensors);

 protected:
  int rank_ = 0, size_ = 1;
};

}  // namespace glimpse
