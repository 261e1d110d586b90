#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>

namespace glimpse::cuda {

/// Work on a CUDA device, recorded once and then started as a whole: the host no longer starts every kernel.
/// What it reads and writes stays in place; its sizes are those of the recording.
class Graph {
 public:
  Graph();
  ~Graph();
  Graph(const Graph&) = delete;

  /// Records `work` without running it; the result is in the graph's own memory. It must have run before, so
  /// that nothing is set up any more, and may neither wait for the device nor copy from pageable memory
  /// (c10::Error).
  at::Tensor record(at::Device device, const std::function<at::Tensor()>& work);
  /// Starts it on the current stream.
  void replay();

 private:
  struct Recorded;
  std::unique_ptr<Recorded> recorded_;
};

}  // namespace glimpse::cuda
