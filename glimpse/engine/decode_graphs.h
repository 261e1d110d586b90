#pragma once

#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <vector>

#include "glimpse/nn/cuda_graph.h"
#include "glimpse/nn/cuda_ops.h"

namespace glimpse {

/// Decoding steps of one model that were recorded on a CUDA device. Such a step can be any of as many
/// sequences whose longest cache falls into the same bucket; a kind of step is recorded when it comes the
/// second time. The least recently used leave. For one thread at a time: the others decode without.
class DecodeGraphs {
 public:
  /// What a recorded step depends on.
  struct Kind {
    int64_t sequences = 0, components = 0;
    std::vector<int64_t> turns;    ///< layers before which positions change
    std::vector<int64_t> longest;  ///< bucket per layer
    bool operator==(const Kind&) const = default;
  };
  /// The work of a step on what is in `inputs` and `table`, both on the device; returns the logits.
  using Step = std::function<at::Tensor(const at::Tensor& inputs, const cuda::DecodeTable& table)>;

  /// A cache length that stands for `rows` and those a bit below it.
  static int64_t bucket(int64_t rows);
  /// Runs the step on `inputs` [1 + turns, sequences] and `table` in host memory; an undefined tensor if it
  /// must be run without a graph.
  at::Tensor run(const Kind& kind, const at::Tensor& inputs, const cuda::DecodeTable& table,
                 at::Device device, const Step& step);

 private:
  struct Entry {
    Kind kind;
    std::unique_ptr<cuda::Graph> graph;  // null: seen once
    at::Tensor inputs, logits;
    cuda::DecodeTable table;
  };

  std::mutex mutex_;
  std::list<Entry> entries_;  // the most recently used first
  bool usable_ = true;
};

}  // namespace glimpse
