#pragma once

#include <exception>
#include <list>

#include "glimpse/engine/lane.h"
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
  bool started() const { return started_; }  ///< whether the encoders have ended
  bool done() const { return empty() || layer_ == model_.decoder().config().layers; }
  /// Rows of all sequences that run through the layer.
  int64_t rows() const;
  /// What the next step costs, and all that are left as far as it is known, in rows through a layer.
  int64_t step_rows() const;
  int64_t rows_left() const;
  /// After the last layer: the next-token logits [sequences, V] float32, in the order of adding.
  at::Tensor finish();

 private:
  void encode(std::vector<Failure>& failures);
  void begin_layer(std::vector<Failure>& failures);
  void run_block();
  void end_layer(const Observer& observe, std::vector<Failure>& failures);
  void pass(int64_t when, std::vector<Failure>& failures);
  void assemble(const std::vector<at::Tensor>& rows);

  const Vlm& model_;
  PrefixCache* cache_;
  const int64_t block_rows_;
  std::list<Lane> lanes_;
  bool started_ = false;
  at::Tensor x_;  // [R, D]: the rows of all lanes
  Rope rope_;     // of x_
  int64_t layer_ = 0;
  std::optional<int64_t> through_;  // rows that this layer has run, if it has begun
};

}  // namespace glimpse
