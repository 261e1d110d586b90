#include "glimpse/train/rollout.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "glimpse/engine/prefill.h"
#include "glimpse/engine/sampling.h"

namespace glimpse {

namespace {

// Keeps what is given.
class GivenPruner : public Pruner {
 public:
  GivenPruner(const std::vector<int64_t>& kept, int64_t layer) : kept_(kept), layer_(layer) {}
  std::string name() const override { return "given"; }
  nlohmann::json settings() const override { return nullptr; }
  std::vector<Cut> cuts() const override { return {{Cut::Place::after, layer_}}; }
  Taps taps() const override { return {}; }
  Selection select(const View&, const Cut&, const Budget&) const override {
    Selection out;
    out.keep = kept_;
    return out;
  }

 private:
  const std::vector<int64_t>& kept_;
  const int64_t layer_;
};

// A completion that is being drawn.
struct Completion {
  Sequence sequence;
  std::vector<int64_t>& ids;
  Sampler first, later;

  void draw(const at::Tensor& logits) {
    Sampler& sampler = ids.empty() ? first : later;
    ids.push_back(sampler.draw(sampler.candidates(logits, {}, 0)));
  }
};

}  // namespace

Fields RolloutOptions::fields() {
  Fields fields;
  fields.add("completions", completions, "answers drawn for each prompt", {2, 256})
      .add("max_new_tokens", max_new_tokens, "longest of them, in tokens after the first", {1, 1e6})
      .add("top_k", top_k, "draw from so many likeliest tokens, from the second on (0: from all)", {0, 1e6});
  return fields;
}

void roll_out(const Vlm& model, std::span<Group> groups, std::span<const int64_t> seeds,
              const GroupLimits& limits, const RolloutOptions& options) {
  const at::NoGradGuard no_grad;
  std::vector<Sequence> prompts(groups.size());
  std::vector<Sequence*> together;
  for (size_t i = 0; i < groups.size(); ++i) {
    prompts[i].prompt = groups[i].prompt;
    prompts[i].pruners = {std::make_shared<GivenPruner>(groups[i].kept, limits.cut_layer)};
    together.push_back(&prompts[i]);
  }
  const at::Tensor logits = prefill(model, together);

  std::vector<Completion> completions;
  for (size_t i = 0; i < groups.size(); ++i) {
    groups[i].completions.assign(static_cast<size_t>(options.completions), {});
    for (int64_t c = 0; c < options.completions; ++c) {
      SamplingOptions sampling;
      sampling.temperature = 1;
      sampling.seed = seeds[i] + c;
      const Sampler first(sampling);
      sampling.top_k = options.top_k;
      completions.push_back(
          {prompts[i], groups[i].completions[static_cast<size_t>(c)], first, Sampler(sampling)});
      completions.back().draw(logits[static_cast<int64_t>(i)]);
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
    for (size_t i = 0; i < live.size(); ++i) live[i]->draw(next[static_cast<int64_t>(i)]);
    std::erase_if(live, [&](const Completion* completion) {
      return std::ssize(completion->ids) > options.max_new_tokens ||
             std::ranges::count(limits.ends, completion->ids.back()) > 0;
    });
  }
}

}  // namespace glimpse
