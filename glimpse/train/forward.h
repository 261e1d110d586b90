#pragma once

#include <span>

#include "glimpse/models/vlm.h"
#include "glimpse/prune/glimpse.h"
#include "glimpse/score/answer_score.h"
#include "glimpse/train/rows.h"

namespace glimpse {

/// One question with its answer and where to look for it.
struct Example {
  Prompt prompt;                  ///< ends where the answer begins
  std::vector<int64_t> answer;    ///< ids of the answer, its end included
  at::Tensor reference = {};      ///< [N] float32: 1 for the visual tokens inside the reference boxes;
                                  ///< undefined for a row without boxes
  const TrainRow* row = nullptr;  ///< where it comes from
  SeenImage seen = {};            ///< its picture, for boxes in answers
  int64_t seed = 0;               ///< of what is drawn for it
};

/// Weights of the loss's parts (method.md section 5).
struct LossOptions {
  double loc_weight = 1.0, le_weight = 1.0, dice_weight = 1.0, bce_weight = 0.1;
  double distil_weight = 1.0;  ///< of a scout's distillation

  Fields fields();
};

/// Losses of one example, scalars attached to the gradients.
struct ExampleLoss {
  at::Tensor total;
  at::Tensor le;   ///< next-token cross entropy of the answer, predicted through the glimpse token; of a
                   ///< scout the cross entropy with its teacher
  at::Tensor loc;  ///< dice_weight * dice + bce_weight * bce, summed over the predictor's outputs
  at::Tensor dice, bce;   ///< [outputs]
  at::Tensor vip_logits;  ///< [outputs, N]; the last row decides
};

/// Of logits [outputs, N] against a reference [N] of 0 and 1: 1 - the soft Dice coefficient, and the mean
/// binary cross entropy; [outputs] each.
at::Tensor dice_loss(const at::Tensor& logits, const at::Tensor& reference);
at::Tensor bce_loss(const at::Tensor& logits, const at::Tensor& reference);

/// Which rows the gradients go through.
enum class Backpropagation {
  glimpse_rows,  ///< the glimpse token and the answer; the prompt runs once without gradients, because
                 ///< nothing in it depends on the glimpse token
  all_rows       ///< everything, as the reference does it; for comparison
};

/// Runs the sequences [prompt | glimpse | answer] of all examples as one ragged batch through every layer
/// (method.md section 5). The same layers as in inference run under autograd. `modules` are attached to the
/// parameters that train.
std::vector<ExampleLoss> training_losses(const Vlm& model, std::shared_ptr<const GlimpseModules> modules,
                                         std::span<const Example> examples, const LossOptions& options,
                                         Backpropagation through = Backpropagation::glimpse_rows);

}  // namespace glimpse
