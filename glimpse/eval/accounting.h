#pragma once

#include <optional>

#include "glimpse/engine/engine.h"
#include "glimpse/eval/flops.h"

namespace glimpse {

/// Operations that one answer took, stage by stage (glimpse/eval/flops.h).
struct AnswerFlops {
  std::optional<double> vision;  ///< not known for a config that does not describe the encoder
  double prefill = 0;            ///< of the prompt's own rows, on what each layer was left with
  double prune =
      0;  ///< what pruning itself adds: a guide row, the predictor, similarities, attention looked at
  double decode = 0;

  double total() const { return vision.value_or(0) + prefill + prune + decode; }
};

/// Counts answers of a loaded model by formula.
class Accounting {
 public:
  /// `source` is what the engine was loaded from.
  Accounting(const Engine& engine, const ModelSource& source);

  /// What `answer`, given with these pruners, took.
  AnswerFlops of(const Answer& answer, const PrunerChain& pruners) const;

  /// Pixels that one token's side covers, if the config tells.
  std::optional<int64_t> token_pixels() const;

 private:
  double overhead(const Pruner& pruner, const Cut& cut, const Answer& answer, const CutSizes& sizes,
                  double rows) const;
  const Engine& engine_;
  DecoderConfig decoder_;
  std::optional<VisionShape> vision_;
};

}  // namespace glimpse
