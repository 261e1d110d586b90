#pragma once

#include <functional>
#include <limits>
#include <optional>

#include "glimpse/nn/decoder.h"

namespace glimpse {

/// What happens between the layers: before and after each of them. A hook may change the rows [R, D] and the
/// batch that goes with them, for this layer and all that follow.
struct LayerHooks {
  using Hook = std::function<void(int64_t layer, at::Tensor& rows, RaggedBatch& batch)>;
  Hook before = {}, after = {};
};

/// The rows of a ragged batch on their way through a decoder's layers. Prefill, decoding and training all go
/// this way; under autograd where gradients are on. It goes in steps, each a layer over a block of rows,
/// between which it can be left, and sequences can leave it.
class Forward {
 public:
  /// Through the layers `from` to `to` - 1. `rows` [R, D] are changed in place unless there are gradients,
  /// with which every layer must be one block.
  Forward(const Decoder& decoder, at::Tensor rows, RaggedBatch batch, LayerHooks hooks, int64_t from,
          int64_t to, int64_t block_rows = std::numeric_limits<int64_t>::max())
      : decoder_(decoder),
        rows_(std::move(rows)),
        batch_(std::move(batch)),
        hooks_(std::move(hooks)),
        layer_(from),
        end_(to),
        block_rows_(block_rows) {}
  /// Through all of them.
  Forward(const Decoder& decoder, at::Tensor rows, RaggedBatch batch, LayerHooks hooks = {})
      : Forward(decoder, std::move(rows), std::move(batch), std::move(hooks), 0, decoder.config().layers) {}

  bool done() const { return batch_.sequences.empty() || layer_ == end_; }
  void step();
  /// The rows behind the last layer.
  at::Tensor run();

  /// The layer that runs, or runs next, and the rows of it that have run.
  int64_t layer() const { return layer_; }
  int64_t rows_run() const { return through_.value_or(0); }
  /// Rows that the next step runs, as far as it is known before a hook changes them.
  int64_t step_rows() const;
  const at::Tensor& rows() const { return rows_; }
  /// A sequence leaves, between any two steps.
  void remove(size_t sequence);

 private:
  void run_block();
  RaggedBatch block(int64_t begin, int64_t end) const;

  const Decoder& decoder_;
  at::Tensor rows_;
  RaggedBatch batch_;
  const LayerHooks hooks_;
  int64_t layer_;
  const int64_t end_, block_rows_;
  std::optional<int64_t> through_;  // rows that this layer has run, if it has begun
};

}  // namespace glimpse
