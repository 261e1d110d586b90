#pragma once

#include <exception>
#include <list>

#include "glimpse/engine/lane.h"
#include "glimpse/nn/forward.h"
#include "glimpse/nn/row_blocks.h"

namespace glimpse {

/// Prompts on their way through encoder and layers as one ragged batch, each pruned at its own cuts. It goes
/// in steps: a block of an encoder, or a layer over a block of rows. Between any two of them it can be left,
/// and sequences can leave it.
class PrefillBatch {
 public:
  /// `block_rows`: the most rows that run through a layer at once; 32 at least.
  explicit PrefillBatch(const Vlm& model, PrefixCache* cache, int64_t block_rows)
      : model_(model), cache_(cache), block_rows_(std::max<int64_t>(block_rows, 32)) {}
  explicit PrefillBatch(const Vlm& model, PrefixCache* cache = nullptr)
      : PrefillBatch(model, cache, max_block_rows(model.decoder().options().device())) {}
  PrefillBatch(const PrefillBatch&) = delete;  // its hooks refer to it

  /// From here on with gradients, through the language model and the cuts, whose choices have none. The
  /// caches, too, are then part of the graph. Not with a prefix cache.
  void record_gradients();
  /// Adds a sequence, which must outlive the batch or leave it; its patches are not needed in it any more.
  /// Its image prefix comes from the cache if that has it. Only before the first layer.
  void add(Sequence& sequence);
  /// What went wrong with a sequence alone; it has left the batch.
  struct Failure {
    Sequence* sequence;
    std::exception_ptr error;
  };
  /// Runs the next step, with the cuts before and after a layer if it begins and ends one. `observe` sees
  /// layers as a whole.
  std::vector<Failure> step(const Observer& observe = {});
  void remove(const Sequence& sequence);

  bool empty() const { return lanes_.empty(); }
  bool started() const { return forward_.has_value(); }  ///< whether the encoders have ended
  bool done() const { return empty() || (started() && forward_->done()); }
  /// Rows of all sequences that run through the layer.
  int64_t rows() const;
  /// What the next step costs, and all that are left as far as it is known, in rows through a layer.
  int64_t step_rows() const;
  int64_t rows_left() const;
  /// After the last layer: the logits [sequences * last, V] float32 that follow the `last` rows of each
  /// sequence (or as many as it has), in the order of adding.
  at::Tensor finish(int64_t last = 1);

 private:
  void encode();
  std::list<Lane>::iterator fail(std::list<Lane>::iterator lane);
  void before_layer(int64_t layer, at::Tensor& rows, RaggedBatch& batch);
  void after_layer(int64_t layer, at::Tensor& rows, RaggedBatch& batch);
  void pass(Moment when, at::Tensor& rows, RaggedBatch& batch);
  void assemble(const std::vector<at::Tensor>& own, at::Tensor& rows, RaggedBatch& batch);

  const Vlm& model_;
  PrefixCache* cache_;
  const int64_t block_rows_;
  bool gradients_ = false;
  std::list<Lane> lanes_;
  std::optional<Forward> forward_;  // once the encoders have ended
  Observer observe_;                // of the step that runs
  std::vector<Failure> failures_;   // in it
};

}  // namespace glimpse
