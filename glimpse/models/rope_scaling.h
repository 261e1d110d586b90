#pragma once

#include <ATen/ATen.h>

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "glimpse/nn/rotary.h"

namespace glimpse {

/// What a family's config.json says where it is silent, and its head size.
struct RopeDefaults {
  int64_t head_dim = 0;
  double theta = 1e4;
  int64_t max_positions = 0;  ///< max_position_embeddings
};

/// A language model's rotary embedding as its config scales it: not at all, linear, dynamic (NTK), yarn or
/// llama3, by the formulas of transformers. In yarn `factor` counts, as in its paper and in transformers 5;
/// without one, what max_position_embeddings is of original_max_position_embeddings (as transformers 4.51 has
/// it wherever it can).
class RopeScaling {
 public:
  RopeScaling() = default;
  /// From the part `text` of the config `top`, whose rope_parameters or rope_scaling it reads; `where` names
  /// the file. Error naming the field: an unknown kind, a field that the kind does not have, a number that
  /// makes no sense.
  RopeScaling(const nlohmann::json& text, const nlohmann::json& top, const RopeDefaults& defaults,
              const std::string& where, at::Device device);

  /// The frequencies of position_ids [components, T], float32: [1, pairs], or [T, pairs] where they depend on
  /// the sequence's length (dynamic). Then a sequence longer than max_position_embeddings turns all its rows
  /// by the frequencies of its largest position, as in transformers' forward pass; position_ids [components,
  /// S, T] are the rows of S sequences. Keys in a cache stay as they were turned.
  at::Tensor frequencies(const at::Tensor& position_ids) const;
  /// Tables from angles [T, pairs]; yarn's attention factor lengthens both.
  Rope tables(const at::Tensor& angles) const;
  /// Positions that the model reaches.
  int64_t context() const { return context_; }

 private:
  void scale(std::string_view kind, const nlohmann::json& rope, int64_t original, bool told,
             const std::string& where);
  void scale_yarn(const nlohmann::json& rope, double trained, const std::string& where);
  void scale_llama3(const nlohmann::json& rope, double trained, const std::string& where);

  at::Tensor frequencies_;  // [1, pairs], of sequences within max_positions_
  double theta_ = 1e4, factor_ = 1, attention_factor_ = 1;
  int64_t max_positions_ = 0, context_ = 0;
  bool dynamic_ = false;
};

}  // namespace glimpse
