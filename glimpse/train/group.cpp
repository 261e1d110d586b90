#include "glimpse/train/group.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "glimpse/base/check.h"
#include "glimpse/nn/index_tensor.h"
#include "glimpse/prune/similarity.h"
#include "glimpse/train/added_features.h"
#include "glimpse/train/recompute.h"

namespace glimpse {

namespace {

// Rows of the prompt that stay when all visual tokens but the kept ones leave.
std::vector<int64_t> kept_rows(const Group& group) {
  const std::vector<int64_t>& visual = group.prompt.visual_rows;
  std::vector<int64_t> dropped;
  for (const int64_t token : others(std::ssize(visual), group.kept)) dropped.push_back(visual[token]);
  return others(std::ssize(group.prompt.ids), dropped);
}

// Where the kept visual tokens stand among these.
std::vector<int64_t> kept_places(const Group& group) {
  std::vector<int64_t> places;
  for (const int64_t token : group.kept)
    places.push_back(group.prompt.visual_rows[token] - token + std::ssize(places));
  return places;
}

at::Tensor at_rows(const at::Tensor& table, const at::Tensor& index, int64_t behind) {
  return at::cat({table.index_select(0, index), table.narrow(0, behind, table.size(0) - behind)});
}

at::Tensor run_layer(const Decoder& decoder, int64_t layer, const at::Tensor& x, const RaggedBatch& batch,
                     bool recompute) {
  return recompute && at::GradMode::is_enabled() ? recomputed_layer(decoder, layer, x, batch)
                                                 : decoder.layer(layer, x, batch);
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
  return std::max<int64_t>(1, std::min(own, limits.max_seq_length - pruned_length(group)));
}

int64_t pruned_length(const Group& group) {
  return std::ssize(group.prompt.ids) - std::ssize(group.prompt.visual_rows) + std::ssize(group.kept);
}

Spread spread(std::span<const double> scores) {
  const auto count = static_cast<double>(scores.size());
  const double mean = std::accumulate(scores.begin(), scores.end(), 0.0) / count;
  double squares = 0;
  for (const double score : scores) squares += (score - mean) * (score - mean);
  return {mean, std::sqrt(squares / (count - 1))};
}

std::vector<double> advantages(std::span<const double> scores) {
  std::vector<double> out(scores.size(), 0.0);
  // A rounding error in the mean of equal scores would be multiplied by 10,000.
  if (std::ranges::all_of(scores, [&](double score) { return score == scores[0]; })) return out;
  const auto [mean, deviation] = spread(scores);
  for (size_t i = 0; i < out.size(); ++i) out[i] = (scores[i] - mean) / (deviation + 1e-4);
  return out;
}

StartedPrompt start_prompt(const Vlm& model, EmbeddedPrompt embedded, const Prompt& prompt, int64_t layers) {
  const at::NoGradGuard no_grad;
  const Decoder& decoder = model.decoder();
  const at::Device device = decoder.options().device();
  StartedPrompt start(std::move(embedded));
  if (layers == 0) return start;
  start.layers = layers;
  start.cache = KvCache(layers);
  const AddedFeatures features(start.vision, prompt.visual_rows, device);
  const RaggedBatch batch{{{&start.cache, start.rows.size(0)}},
                          model.rope(to_device(prompt.position_ids, device))};
  for (int64_t layer = 0; layer < layers; ++layer)
    start.rows = decoder.layer(layer, features.added(start.rows, layer, 0), batch);
  return start;
}

PromptPass run_prompt(const Vlm& model, const StartedPrompt& prompt, const Group& group,
                      const GroupLimits& limits, LogProb logprob, bool prune) {
  const Decoder& decoder = model.decoder();
  const at::Device device = decoder.options().device();
  const at::Tensor& rows = prompt.rows;
  const int64_t layers = decoder.config().layers, whole = rows.size(0);
  const at::Tensor kept = index_tensor(kept_rows(group), device),
                   places = to_device(group.prompt.position_ids, device);
  const bool published = logprob == LogProb::published;
  invariant(prompt.layers <= (published ? 0 : limits.cut_layer + 1), "a prompt that is not beyond the cut");
  const AddedFeatures all{prompt.vision, group.prompt.visual_rows, device},
      left{prompt.vision, kept_places(group), device, group.kept};

  // The prompt, whole up to the cut, whose last row says the first token; and as the published distribution
  // has it, without the dropped tokens.
  KvCache first_cache(layers), kept_cache(layers);
  std::ranges::copy(prompt.cache.layers, first_cache.layers.begin());
  RaggedBatch batch{{{&first_cache, whole}}, {}};
  std::vector<at::Tensor> all_rows = {rows}, all_places = {places};
  if (published) {
    batch.sequences.push_back({&kept_cache, kept.size(0)});
    all_rows.push_back(rows.index_select(0, kept));
    all_places.push_back(places.index_select(1, kept));
  }
  batch.rope = model.rope(at::cat(all_places, 1));
  at::Tensor out = at::cat(all_rows);
  bool is_cut = false;
  const auto cut = [&] {
    is_cut = true;
    out = at_rows(out, kept, whole);
    batch.rope = {at_rows(batch.rope.cos, kept, whole), at_rows(batch.rope.sin, kept, whole)};
    batch.sequences[0].count = kept.size(0);
    if (!published)
      for (int64_t l = 0; l <= limits.cut_layer; ++l) first_cache.layers[l].keep(kept);
  };
  if (prune && prompt.layers == limits.cut_layer + 1) cut();
  for (int64_t layer = prompt.layers; layer < layers; ++layer) {
    out = (is_cut ? left : all).added(out, layer, 0);
    if (published) out = left.added(out, layer, batch.sequences[0].count);
    out = run_layer(decoder, layer, out, batch, limits.recompute);
    if (published) first_cache.layers[layer] = LayerCache();  // nobody reads it any more
    if (prune && layer == limits.cut_layer) cut();
  }
  const int64_t last = prune ? kept.size(0) : whole;
  return {decoder.logits(out.narrow(0, last - 1, 1))[0], published ? kept_cache : first_cache};
}

GroupLogits group_logits(const Vlm& model, const StartedPrompt& start, const Group& group,
                         const GroupLimits& limits, LogProb logprob, bool prune) {
  const Decoder& decoder = model.decoder();
  const at::Device device = decoder.options().device();
  const Prompt& prompt = group.prompt;
  const PromptPass pass = run_prompt(model, start, group, limits, logprob, prune);
  GroupLogits logits{pass.first, std::vector<at::Tensor>(group.completions.size())};

  // The completions behind it, each up to the token before its last one.
  std::vector<KvCache> caches(group.completions.size(), pass.cache);
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
  const int64_t components = prompt.position_ids.size(0);
  tails.rope = model.rope(index_tensor(next, device).unsqueeze(0).expand({components, -1}).contiguous());
  at::Tensor tail = decoder.embed(index_tensor(ids, device));
  for (int64_t layer = 0; layer < decoder.config().layers; ++layer)
    tail = run_layer(decoder, layer, tail, tails, limits.recompute);
  const at::Tensor behind = decoder.logits(tail);
  int64_t row = 0;
  for (size_t i = 0; i < asked.size(); ++i) {
    logits.behind[asked[i]] = behind.narrow(0, row, tails.sequences[i].count);
    row += tails.sequences[i].count;
  }
  return logits;
}

std::vector<at::Tensor> completion_logps(const Vlm& model, const StartedPrompt& prompt, const Group& group,
                                         const GroupLimits& limits, LogProb logprob, bool prune,
                                         bool alike_once) {
  Group distinct{group.prompt, group.kept, {}, {}};
  std::map<std::vector<int64_t>, size_t> places;
  std::vector<size_t> place;  // of each completion among the distinct ones
  for (const std::vector<int64_t>& ids : group.completions) {
    const auto [known, fresh] = places.try_emplace(ids);
    if (fresh || !alike_once) {
      known->second = distinct.completions.size();
      distinct.completions.push_back(ids);
    }
    place.push_back(known->second);
  }

  const GroupLogits logits = group_logits(model, prompt, distinct, limits, logprob, prune);
  std::vector<at::Tensor> each, out;
  for (size_t i = 0; i < distinct.completions.size(); ++i) {
    at::Tensor all = logits.first.unsqueeze(0);
    if (logits.behind[i].defined()) all = at::cat({all, logits.behind[i]});
    std::vector<int64_t> ids = distinct.completions[i];
    ids.resize(all.size(0));
    each.push_back(all.log_softmax(1).gather(1, index_tensor(ids, all.device()).unsqueeze(1)).squeeze(1));
  }
  for (const size_t i : place) out.push_back(each[i]);
  return out;
}

GroupLoss group_loss(Vlm& model, const LoraAdapter& adapter, const StartedPrompt& prompt, const Group& group,
                     const GroupLimits& limits, const GroupOptions& options) {
  const size_t count = group.completions.size();
  check(count > 1 && group.scores.size() == count, "training: a group has ", count, " completions and ",
        group.scores.size(), " scores; expected the same number, two or more");
  for (const auto& ids : group.completions) check(!ids.empty(), "training: a completion is empty");

  std::vector<at::Tensor> base;
  {
    const at::NoGradGuard no_grad;
    LoraAdapter::detach(model.mutable_decoder());
    base = completion_logps(model, prompt, group, limits, options.logprob, /*prune=*/false,
                            /*alike_once=*/true);
    adapter.attach(model.mutable_decoder());
  }
  const std::vector<at::Tensor> now =
      completion_logps(model, prompt, group, limits, options.logprob, /*prune=*/true,
                       /*alike_once=*/adapter.dropout() == 0);

  GroupLoss loss;
  loss.advantages = advantages(group.scores);
  std::vector<at::Tensor> rewards, distances;
  for (size_t i = 0; i < count; ++i) {
    const at::Tensor &lp = now[i], &ref = base[i], off = ref - lp;
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
