#include "glimpse/train/rollout.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "glimpse/engine/sampling.h"
#include "glimpse/engine/sequence.h"

namespace glimpse {

namespace {

// A completion that is being drawn.
struct Completion {
  Sequence sequence;
  std::vector<int64_t>& ids;
  Sampler first, later;

  // From the CPU.
  void draw(const at::Tensor& candidates) { ids.push_back((ids.empty() ? first : later).draw(candidates)); }
};

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
  std::vector<Completion> completions;
  for (size_t i = 0; i < groups.size(); ++i) {
    Group& group = groups[i];
    const PromptPass pass = run_prompt(model, prompts[i], group, limits, LogProb::sampled, /*prune=*/true);
    Sequence sequence;
    sequence.prompt.position_ids = group.prompt.position_ids;
    sequence.next_position = group.prompt.next_position;
    sequence.cache = pass.cache;
    group.completions.assign(static_cast<size_t>(options.completions), {});
    at::Tensor candidates;  // the same for all
    for (size_t c = 0; c < group.completions.size(); ++c) {
      SamplingOptions sampling;
      sampling.temperature = options.temperature;
      sampling.seed = seeds[i] + static_cast<int64_t>(c);
      const Sampler first(sampling);
      sampling.top_k = options.top_k;
      completions.push_back({sequence, group.completions[c], first, Sampler(sampling)});
      if (c == 0) candidates = first.candidates(pass.first, {}, 0).cpu();
      completions.back().draw(candidates);
    }
  }
  std::vector<Completion*> live;
  for (Completion& completion : completions) live.push_back(&completion);
  while (!live.empty()) {
    std::vector<Sequence*> sequences;
    std::vector<int64_t> tokens;
    for (Completion* completion : live) {
      sequences.push_back(&completion->sequence);
      tokens.push_back(completion->ids.back());
    }
    const at::Tensor next = decode_step(model, sequences, tokens);
    std::vector<at::Tensor> candidates;
    for (size_t i = 0; i < live.size(); ++i)
      candidates.push_back(live[i]->later.candidates(next[static_cast<int64_t>(i)], {}, 0));
    const at::Tensor all = at::stack(candidates).cpu();  // one copy from the device
    for (size_t i = 0; i < live.size(); ++i) live[i]->draw(all[static_cast<int64_t>(i)]);
    std::erase_if(live, [&](const Completion* completion) {
      return std::ssize(completion->ids) > options.max_new_tokens ||
             std::ranges::count(limits.ends, completion->ids.back()) > 0;
    });
  }
}

}  // namespace glimpse
