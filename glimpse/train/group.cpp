#include "glimpse/train/group.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "glimpse/base/check.h"
#include "glimpse/engine/prefill.h"
#include "glimpse/nn/forward.h"
#include "glimpse/nn/index_tensor.h"
#include "glimpse/prune/shares.h"

namespace glimpse {

namespace {

// Rows of the prompt that stay when all visual tokens but the kept ones leave.
std::vector<int64_t> kept_rows(const Group& group) {
  const std::vector<int64_t>& visual = group.prompt.visual_rows;
  std::vector<bool> stays(group.prompt.ids.size(), true);
  for (const int64_t row : visual) stays[row] = false;
  for (const int64_t token : group.kept) stays.at(visual.at(token)) = true;
  std::vector<int64_t> rows;
  for (size_t row = 0; row < stays.size(); ++row)
    if (stays[row]) rows.push_back(static_cast<int64_t>(row));
  return rows;
}

at::Tensor at_rows(const at::Tensor& table, const at::Tensor& index, int64_t behind) {
  return at::cat({table.index_select(0, index), table.narrow(0, behind, table.size(0) - behind)});
}

// Log-probabilities of the completion's first tokens: [n] float32.
at::Tensor logps_of(const GroupLogits& logits, size_t completion, std::span<const int64_t> ids) {
  const at::Tensor& behind = logits.behind[completion];
  const at::Tensor all =
      behind.defined() ? at::cat({logits.first.unsqueeze(0), behind}) : logits.first.unsqueeze(0);
  const at::Tensor index = index_tensor({ids.begin(), ids.end()}, all.device()).unsqueeze(1);
  return all.log_softmax(1).gather(1, index).squeeze(1);
}

}  // namespace

Fields GroupOptions::fields() {
  Fields fields;
  fields.add("reward_weight", reward_weight, "weight of the reward", {0, 1e6})
      .add("kd_weight", kd_weight, "weight of the distance from the base model", {0, 1e6});
  return fields;
}

int64_t counting_tokens(const Group& group, size_t completion, const GroupLimits& limits) {
  const std::vector<int64_t>& ids = group.completions[completion];
  const auto end = std::find_first_of(ids.begin(), ids.end(), limits.ends.begin(), limits.ends.end());
  const int64_t own = end == ids.end() ? std::ssize(ids) : end - ids.begin() + 1;
  const auto dropped = std::ssize(group.prompt.visual_rows) - std::ssize(group.kept);
  const int64_t room = limits.max_seq_length - (std::ssize(group.prompt.ids) - dropped);
  return std::max<int64_t>(1, std::min(own, room));
}

std::vector<double> advantages(std::span<const double> scores) {
  const auto count = static_cast<double>(scores.size());
  std::vector<double> out(scores.size(), 0.0);
  // A rounding error in the mean of equal scores would be multiplied by 10,000.
  if (std::ranges::all_of(scores, [&](double score) { return score == scores[0]; })) return out;
  const double mean = std::accumulate(scores.begin(), scores.end(), 0.0) / count;
  double squares = 0;
  for (const double score : scores) squares += (score - mean) * (score - mean);
  const double deviation = std::sqrt(squares / (count - 1));
  for (size_t i = 0; i < out.size(); ++i) out[i] = (scores[i] - mean) / (deviation + 1e-4);
  return out;
}

GroupLogits group_logits(const Vlm& model, const at::Tensor& rows, const Group& group,
                         const GroupLimits& limits, LogProb logprob, bool prune) {
  const Decoder& decoder = model.decoder();
  const at::Device device = decoder.options().device();
  const int64_t layers = decoder.config().layers, whole = rows.size(0);
  const Prompt& prompt = group.prompt;
  const at::Tensor kept = index_tensor(kept_rows(group), device),
                   places = to_device(prompt.position_ids, device);
  const bool published = logprob == LogProb::published;

  // The prompt, whole up to the cut, whose last row says the first token; and as the published distribution
  // has it, without the dropped tokens.
  KvCache first_cache(layers), kept_cache(layers);
  RaggedBatch batch{{{&first_cache, whole}}, {}};
  std::vector<at::Tensor> all_rows = {rows}, all_places = {places};
  if (published) {
    batch.sequences.push_back({&kept_cache, kept.size(0)});
    all_rows.push_back(rows.index_select(0, kept));
    all_places.push_back(places.index_select(1, kept));
  }
  batch.rope = model.rope(at::cat(all_places, 1));
  LayerHooks hooks;
  hooks.after = [&](int64_t layer, at::Tensor& x, RaggedBatch& now) {
    if (published) first_cache.layers[layer] = LayerCache();  // nobody reads it any more
    if (!prune || layer != limits.cut_layer) return;
    x = at_rows(x, kept, whole);
    now.rope = {at_rows(now.rope.cos, kept, whole), at_rows(now.rope.sin, kept, whole)};
    now.sequences[0].count = kept.size(0);
  };
  const at::Tensor out = Forward(decoder, at::cat(all_rows), batch, hooks).run();
  const int64_t last = prune ? kept.size(0) : whole;
  GroupLogits logits{decoder.logits(out.narrow(0, last - 1, 1))[0],
                     std::vector<at::Tensor>(group.completions.size())};

  // The completions behind it, each up to the token before its last one.
  const KvCache& before = published ? kept_cache : first_cache;
  std::vector<KvCache> caches(group.completions.size(), before);
  RaggedBatch tails;
  std::vector<int64_t> ids, next;
  std::vector<size_t> asked;
  for (size_t i = 0; i < caches.size(); ++i) {
    const int64_t count = counting_tokens(group, i, limits) - 1;
    if (count == 0) continue;
    asked.push_back(i);
    tails.sequences.push_back({&caches[i], count});
    for (int64_t t = 0; t < count; ++t) {
      ids.push_back(group.completions[i][t]);
      next.push_back(prompt.next_position + t);
    }
  }
  if (asked.empty()) return logits;
  tails.rope = model.rope(index_tensor(next, device).unsqueeze(0).expand({places.size(0), -1}).contiguous());
  const at::Tensor behind =
      decoder.logits(Forward(decoder, decoder.embed(index_tensor(ids, device)), tails).run());
  int64_t row = 0;
  for (size_t i = 0; i < asked.size(); ++i) {
    logits.behind[asked[i]] = behind.narrow(0, row, tails.sequences[i].count);
    row += tails.sequences[i].count;
  }
  return logits;
}

GroupLoss group_loss(Vlm& model, const LoraAdapter& adapter, const Group& group, const GroupLimits& limits,
                     const GroupOptions& options) {
  const size_t count = group.completions.size();
  check(count > 1 && group.scores.size() == count, "training: a group has ", count, " completions and ",
        group.scores.size(), " scores; expected the same number, two or more");
  for (const auto& ids : group.completions) check(!ids.empty(), "training: a completion is empty");

  GroupLogits base;
  at::Tensor rows;
  {
    const at::NoGradGuard no_grad;
    rows = embed_prompt(model, group.prompt, {}).rows;
    LoraAdapter::detach(model.mutable_decoder());
    base = group_logits(model, rows, group, limits, options.logprob, /*prune=*/false);
    adapter.attach(model.mutable_decoder());
  }
  const GroupLogits now = group_logits(model, rows, group, limits, options.logprob, /*prune=*/true);

  GroupLoss loss;
  loss.advantages = advantages(group.scores);
  std::vector<at::Tensor> rewards, distances;
  for (size_t i = 0; i < count; ++i) {
    const std::span<const int64_t> ids(group.completions[i].data(),
                                       static_cast<size_t>(counting_tokens(group, i, limits)));
    const at::Tensor lp = logps_of(now, i, ids), ref = logps_of(base, i, ids), off = ref - lp;
    rewards.push_back((-(lp - lp.detach()).exp() * loss.advantages[i]).mean());
    distances.push_back((off.exp() - off - 1).mean());
    loss.logps.push_back(lp.detach());
    loss.ref_logps.push_back(ref);
  }
  const at::Tensor reward = options.reward_weight * at::stack(rewards).mean(),
                   kd = options.kd_weight * at::stack(distances).mean();
  loss.total = reward + kd;
  loss.reward = reward.detach();
  loss.kd = kd.detach();
  return loss;
}

}  // namespace glimpse
