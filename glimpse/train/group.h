#pragma once

#include <functional>

#include "glimpse/engine/sequence.h"
#include "glimpse/models/vlm.h"
#include "glimpse/train/lora.h"

namespace glimpse {

/// A prompt, what was sampled for it, and how good that was (method.md section 6).
struct Group {
  Prompt prompt;
  std::vector<int64_t> kept;                      ///< visual tokens that stay, ascending indices
  std::vector<std::vector<int64_t>> completions;  ///< ids as they were sampled, at least one in each
  std::vector<double> scores;                     ///< of each completion, the sum of its score functions
};

/// The distribution that a completion's tokens from the second on are scored with.
enum class LogProb {
  published,  ///< the dropped tokens are absent from the first layer on
  sampled     ///< as in sampling: layers up to the cut saw them
};

struct GroupOptions {
  double reward_weight = 1.0, kd_weight = 0.04;
  LogProb logprob = LogProb::published;

  Fields fields();
};

/// Where a group's tokens end, and where its prompt is pruned.
struct GroupLimits {
  int64_t cut_layer = 0;         ///< K: the dropped tokens leave behind this layer
  std::vector<int64_t> ends;     ///< a completion ends with the first of these ids
  int64_t max_seq_length = 640;  ///< of the pruned prompt and what counts of a completion
  bool recompute = true;         ///< layers run again for their gradients, so that nothing of them is kept
};

/// Tokens of a completion that count: up to its end, that one included, as many as there is room for behind
/// the pruned prompt, and at least one.
int64_t counting_tokens(const Group& group, size_t completion, const GroupLimits& limits);

/// Rows of its prompt without the dropped tokens.
int64_t pruned_length(const Group& group);

/// Gives `run` the groups in parts that are to run together: as many as keep matrix products busy, at least
/// one, as more would only take memory.
void in_parts(std::span<const Group> groups, const std::function<void(size_t first, size_t count)>& run);

/// Of two scores or more; the standard deviation divided by one less than their number.
struct Spread {
  double mean, deviation;
};
Spread spread(std::span<const double> scores);
/// (score - mean) / (deviation + 1e-4); exactly zero where all are equal.
std::vector<double> advantages(std::span<const double> scores);

/// An embedded prompt, perhaps some layers on.
struct StartedPrompt {
  StartedPrompt(EmbeddedPrompt embedded)
      : rows(std::move(embedded.rows)), vision(std::move(embedded.vision)) {}
  at::Tensor rows;      ///< [T, D]: what the next layer gets
  VisionOutput vision;  ///< without `embeds`
  int64_t layers = 0;   ///< that the whole prompt went through
  KvCache cache;        ///< of these
};
/// Takes an embedded prompt through the first layers, without gradients. Where an adapter has no branch in
/// them, model and base model go on from there. Not for the published distribution: there the dropped tokens
/// are absent from the first layer on.
StartedPrompt start_prompt(const Vlm& model, EmbeddedPrompt embedded, const Prompt& prompt, int64_t layers);

/// A prompt that went through a model as it is, its adapter on or off.
struct PromptPass {
  at::Tensor first;  ///< [V] float32: logits of the first token
  KvCache cache;     ///< what completions go on from
};
/// Runs the prompts of several groups as one ragged batch. `prompts`: of each group its own, all equally far
/// and not beyond the cut. With `prune` the first token is seen by a prompt whose dropped tokens leave after
/// the cut; else all of it stays. Gradients are recorded where they are on.
std::vector<PromptPass> run_prompts(const Vlm& model, std::span<const StartedPrompt> prompts,
                                    std::span<const Group> groups, const GroupLimits& limits, LogProb logprob,
                                    bool prune);

/// What such a model thinks of a group, in float32.
struct GroupLogits {
  at::Tensor first;                ///< [V]: of the first token
  std::vector<at::Tensor> behind;  ///< of each completion [counting tokens - 1, V]: of the tokens after it
};
/// As run_prompts(), behind which the completions of all groups are one ragged batch, too.
std::vector<GroupLogits> group_logits(const Vlm& model, std::span<const StartedPrompt> prompts,
                                      std::span<const Group> groups, const GroupLimits& limits,
                                      LogProb logprob, bool prune);

/// Of each group's completions their counting tokens' log-probabilities [n] float32. With `alike_once` equal
/// completions of a group run once, as dropout, which has a mask for each, does not allow.
std::vector<std::vector<at::Tensor>> completion_logps(const Vlm& model,
                                                      std::span<const StartedPrompt> prompts,
                                                      std::span<const Group> groups,
                                                      const GroupLimits& limits, LogProb logprob, bool prune,
                                                      bool alike_once);

/// Loss of a group, attached to the adapter's leaves, and its parts: detached float32 scalars.
struct GroupLoss {
  at::Tensor total, reward, kd;
  std::vector<at::Tensor> logps;      ///< of each completion [counting tokens], detached
  std::vector<at::Tensor> ref_logps;  ///< the base model's; none with kd_weight 0, which does not ask it
  std::vector<double> advantages;
};
/// Of groups that run together, so that their graphs are one. The adapter must be attached to the model's
/// decoder; it is taken off and put on again for the base model's probabilities.
std::vector<GroupLoss> group_losses(Vlm& model, const LoraAdapter& adapter,
                                    std::span<const StartedPrompt> prompts, std::span<const Group> groups,
                                    const GroupLimits& limits, const GroupOptions& options);

}  // namespace glimpse
