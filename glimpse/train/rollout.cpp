#include "glimpse/train/rollout.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <map>
#include <utility>

#include "glimpse/engine/sampling.h"
#include "glimpse/engine/sequence.h"

namespace glimpse {

namespace {

// A completion that is being drawn.
struct Completion {
  std::vector<int64_t>& ids;
  Sampler first, later;

  Sampler& sampler() { return ids.empty() ? first : later; }
};

// Completions of one prompt that are the same so far.
struct Branch {
  Sequence sequence;
  std::vector<Completion*> completions;

  at::Tensor candidates(const at::Tensor& logits) const {
    return completions[0]->sampler().candidates(logits, {}, 0);
  }
};

// Draws the next token of each completion, from the CPU. What the branch becomes: one for each token, or for
// each completion where they are `apart`.
std::vector<Branch> grow(const Branch& branch, const at::Tensor& candidates, bool apart) {
  std::map<std::pair<int64_t, const Completion*>, std::vector<Completion*>> parts;
  for (Completion* completion : branch.completions) {
    const int64_t token = completion->sampler().draw(candidates);
    completion->ids.push_back(token);
    parts[{token, apart ? completion : nullptr}].push_back(completion);
  }
  std::vector<Branch> out;
  for (auto& [name, completions] : parts) out.push_back({branch.sequence, std::move(completions)});
  return out;
}

}  // namespace

Fields RolloutOptions::fields() {
  Fields fields;
  fields.add("completions", completions, "answers drawn for each prompt", {2, 256})
      .add("max_new_tokens", max_new_tokens, "longest of them, in tokens after the first", {1, 1e6})
      .add("top_k", top_k, "draw from so many likeliest tokens, from the second on (0: from all)", {0, 1e6});
  return fields;
}

void roll_out(const Vlm& model, std::span<Group> groups, std::span<const StartedPrompt> prompts,
              std::span<const int64_t> seeds, const GroupLimits& limits, const RolloutOptions& options) {
  const at::NoGradGuard no_grad;
  const DropoutGuard dropout(options.dropout);
  std::vector<std::vector<Completion>> completions(groups.size());
  std::vector<Branch> live;
  for (Group& group : groups) group.completions.clear();
  std::vector<PromptPass> passes;
  in_parts(groups, [&](size_t first, size_t count) {
    std::ranges::move(run_prompts(model, prompts.subspan(first, count), groups.subspan(first, count), limits,
                                  LogProb::sampled, /*prune=*/true),
                      std::back_inserter(passes));
  });
  for (size_t i = 0; i < groups.size(); ++i) {
    Group& group = groups[i];
    Branch all;
    all.sequence.prompt.position_ids = group.prompt.position_ids;
    all.sequence.next_position = group.prompt.next_position;
    all.sequence.cache = std::move(passes[i].cache);  // of which nobody else keeps hold
    group.completions.assign(static_cast<size_t>(options.completions), {});
    completions[i].reserve(group.completions.size());
    for (std::vector<int64_t>& ids : group.completions) {
      SamplingOptions sampling;
      sampling.temperature = options.temperature;
      sampling.seed = seeds[i] + std::ssize(completions[i]);
      const Sampler first(sampling);
      sampling.top_k = options.top_k;
      all.completions.push_back(&completions[i].emplace_back(ids, first, Sampler(sampling)));
    }
    std::ranges::move(grow(all, all.candidates(passes[i].first).cpu(), options.dropout),
                      std::back_inserter(live));
  }
  while (!live.empty()) {
    std::vector<Sequence*> sequences;
    std::vector<int64_t> tokens;
    for (Branch& branch : live) {
      sequences.push_back(&branch.sequence);
      tokens.push_back(branch.completions[0]->ids.back());
    }
    const at::Tensor next = decode_step(model, sequences, tokens);
    std::vector<at::Tensor> candidates;
    for (size_t i = 0; i < live.size(); ++i)
      candidates.push_back(live[i].candidates(next[static_cast<int64_t>(i)]));
    const at::Tensor all = at::stack(candidates).cpu();  // one copy from the device
    std::vector<Branch> grown;
    for (size_t i = 0; i < live.size(); ++i)
      std::ranges::move(grow(live[i], all[static_cast<int64_t>(i)], options.dropout),
                        std::back_inserter(grown));
    std::erase_if(grown, [&](const Branch& branch) {
      const std::vector<int64_t>& ids = branch.completions[0]->ids;
      return std::ssize(ids) > options.max_new_tokens || std::ranges::count(limits.ends, ids.back()) > 0;
    });
    live = std::move(grown);  // what was before goes, and with it the hold on the caches
  }
}

}  // namespace glimpse
