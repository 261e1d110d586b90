#pragma once

#include <compare>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <stop_token>

#include "glimpse/models/vlm.h"
#include "glimpse/prune/compact.h"
#include "glimpse/prune/registry.h"

namespace glimpse {

/// Wall time of the stages of one request, in ms. Sequences that run together each count all of it.
struct StageTimes {
  double vision = 0, prefill = 0, prune = 0, decode = 0;  ///< prune is part of prefill

  nlohmann::json to_json() const;  ///< by these names, to a microsecond
};

/// Thrown inside the forward pass when a stop was requested.
struct Cancelled {};

/// Names an image prefix by the hash of what it depends on.
struct PrefixKey {
  uint64_t high = 0, low = 0;
  auto operator<=>(const PrefixKey&) const = default;
};

/// One sequence between its prompt and its last token.
struct Sequence {
  Prompt prompt;
  PrunerChain pruners;
  Budget budget;
  std::vector<std::vector<Box>> boxes;  ///< reference boxes per medium, normalised
  std::stop_token stop;
  std::optional<PrefixKey> prefix_key;  ///< under which its image prefix may be found and left (PrefixCache)

  KvFormat kv = KvFormat::plain;  ///< of the cache that prefill makes
  KvCache cache;
  at::Tensor position_ids;    ///< of the rows that are left after prefill [components, T']
  std::vector<int64_t> left;  ///< visual tokens that each cut left, in the order of the cuts
  std::vector<int64_t> kept;  ///< source indices (place_of) of the visual tokens that are left, ascending
  at::Tensor scores;  ///< [N] float32: probability per visual token (0 where a cut came first), or undefined
  int64_t next_position = 0;
  /// Per layer: what renumbering cuts took off the positions of later tokens. Empty: nothing anywhere.
  std::vector<int64_t> shift;
  std::vector<int64_t> question_rows;  ///< that the model's text tower ran for each piece of the question
  int64_t cached_tokens = 0;           ///< prompt tokens whose rows came from an image prefix
  StageTimes times;
};

/// A prompt's way into the language model.
struct EmbeddedPrompt {
  at::Tensor rows;      ///< [T, D]: embeddings, the visual tokens in their places
  VisionOutput vision;  ///< without `embeds`
};

/// Encodes the images of a prompt, recording what `taps` ask for, and embeds it.
EmbeddedPrompt embed_prompt(const Vlm& model, const Prompt& prompt, const VisionTaps& taps);
/// Embeds token ids [T], what the encoder gave for the rows `visual_rows` of them projected in their places,
/// and what it gave for `structure_rows`.
at::Tensor embed_rows(const Vlm& model, const std::vector<int64_t>& ids,
                      const std::vector<int64_t>& visual_rows, const at::Tensor& visual,
                      const std::vector<int64_t>& structure_rows, const at::Tensor& structure);

/// Looks at the hidden states on their way: layer, output [R, D] of the whole ragged batch.
using Observer = std::function<void(int64_t layer, const at::Tensor& hidden)>;

/// Encodes the images and runs the prompts of all sequences as one ragged batch, pruning each at its own
/// cuts. Returns the next-token logits [sequences, V] float32. Throws Cancelled when any sequence's stop is
/// requested.
at::Tensor prefill(const Vlm& model, std::span<Sequence* const> sequences, const Observer& observe = {});

class DecodeGraphs;

/// One decoding step: `tokens` [sequences], the token just chosen for each. Returns logits [sequences, V].
/// `graphs`: where steps on a CUDA device are recorded, if there is to be such a place.
at::Tensor decode_step(const Vlm& model, std::span<Sequence* const> sequences,
                       const std::vector<int64_t>& tokens, DecodeGraphs* graphs = nullptr);

}  // namespace glimpse
