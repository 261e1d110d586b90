#pragma once

#include <exception>
#include <list>

#include "glimpse/engine/lane.h"

namespace glimpse {

/// Prompts on their way through the layers as one ragged batch, each pruned at its own cuts. It can be left
/// between any two layers, and sequences can leave it there.
class PrefillBatch {
 public:
  explicit PrefillBatch(const Vlm& model, PrefixCache* cache = nullptr) : model_(model), cache_(cache) {}

  /// Adds a sequence, which must outlive the batch or leave it, and encodes its images or takes its image
  /// prefix from the cache. Only before the first layer.
  void add(Sequence& sequence);
  /// What went wrong with a sequence alone; it has left the batch.
  struct Failure {
    Sequence* sequence;
    std::exception_ptr error;
  };
  /// Runs the next layer and the cuts before and after it.
  std::vector<Failure> step(const Observer& observe = {});
  void remove(const Sequence& sequence);

  bool empty() const { return lanes_.empty(); }
  bool started() const { return layer_ > 0; }
  bool done() const { return layer_ == model_.decoder().config().layers; }
  /// Rows that the next layer runs.
  int64_t rows() const { return x_.defined() ? x_.size(0) : 0; }
  /// After the last layer: the next-token logits [sequences, V] float32, in the order of adding.
  at::Tensor finish();

 private:
  void pass(int64_t when, std::vector<Failure>& failures);
  void update_rope();

  const Vlm& model_;
  PrefixCache* cache_;
  std::list<Lane> lanes_;
  at::Tensor x_;  // [R, D]: the rows of all lanes
  Rope rope_;     // of x_
  int64_t layer_ = 0;
};

}  // namespace glimpse
