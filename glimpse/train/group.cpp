#include "glimpse/train/group.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>

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

// Of the whole prompt and its completions, equal ones once.
int64_t rows_of(const Group& group) {
  int64_t rows = std::ssize(group.prompt.ids);
  for (const auto& ids : std::set(group.completions.begin(), group.completions.end()))
    rows += std::ssize(ids);
  return rows;
}

at::Tensor at_rows(const at::Tensor& table, const at::Tensor& index, int64_t behind) {
  return at::cat({table.index_select(0, index), table.narrow(0, behind, table.size(0) - behind)});
}

// Of the first `count` sequences.
std::vector<int64_t> last_rows(const RaggedBatch& batch, size_t count) {
  std::vector<int64_t> last;
  int64_t end = 0;
  for (size_t i = 0; i < count; ++i) last.push_back((end += batch.sequences[i].count) - 1);
  return last;
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

void in_parts(std::span<const Group> groups, const std::function<void(size_t first, size_t count)>& run) {
  constexpr int64_t most_rows = 2048;
  for (size_t first = 0, end = 0; first < groups.size(); first = end) {
    int64_t rows = rows_of(groups[end++]);
    while (end < groups.size() && (rows += rows_of(groups[end])) <= most_rows) ++end;
    run(first, end - first);
  }
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

std::vector<PromptPass> run_prompts(const Vlm& model, std::span<const StartedPrompt> prompts,
                                    std::span<const Group> groups, const GroupLimits& limits, LogProb logprob,
                                    bool prune) {
  const Decoder& decoder = model.decoder();
  const at::Device device = decoder.options().device();
  const int64_t layers = decoder.config().layers, begun = prompts[0].layers;
  const bool published = logprob == LogProb::published;
  invariant(prompts.size() == groups.size() && begun < layers, "a prompt for each group, not at its end");
  invariant(begun <= (published ? 0 : limits.cut_layer + 1), "prompts that are not beyond the cut");

  // The prompts, whole up to the cut, whose last rows say the first tokens; and as the published distribution
  // has it, behind them without the dropped tokens.
  const size_t count = groups.size();
  std::vector<KvCache> first_caches(count, KvCache(layers)), kept_caches(count, KvCache(layers));
  RaggedBatch batch;
  std::vector<at::Tensor> rows, places, kept, kept_of_all;
  std::vector<AddedFeatures> all, left;
  int64_t whole = 0;
  for (size_t i = 0; i < count; ++i) {
    invariant(prompts[i].layers == begun, "prompts that are equally far");
    std::ranges::copy(prompts[i].cache.layers, first_caches[i].layers.begin());
    batch.sequences.push_back({&first_caches[i], prompts[i].rows.size(0)});
    rows.push_back(prompts[i].rows);
    places.push_back(to_device(groups[i].prompt.position_ids, device));
    kept.push_back(index_tensor(kept_rows(groups[i]), device));
    kept_of_all.push_back(kept.back() + whole);
    all.emplace_back(prompts[i].vision, groups[i].prompt.visual_rows, device);
    left.emplace_back(prompts[i].vision, kept_places(groups[i]), device, groups[i].kept);
    whole += rows.back().size(0);
  }
  const at::Tensor stay = at::cat(kept_of_all);
  at::Tensor out = at::cat(rows), where = at::cat(places, 1);
  if (published) {
    for (size_t i = 0; i < count; ++i) batch.sequences.push_back({&kept_caches[i], kept[i].size(0)});
    out = at::cat({out, out.index_select(0, stay)});
    where = at::cat({where, where.index_select(1, stay)}, 1);
  }
  batch.rope = model.rope(where);

  bool is_cut = false;
  const auto cut = [&] {
    is_cut = true;
    if (!batch.asked.defined()) out = at_rows(out, stay, whole);
    batch.rope = {at_rows(batch.rope.cos, stay, whole), at_rows(batch.rope.sin, stay, whole)};
    for (size_t i = 0; i < count; ++i) {
      batch.sequences[i].count = kept[i].size(0);
      if (published) continue;
      for (int64_t l = 0; l <= limits.cut_layer; ++l) first_caches[i].layers[l].keep(kept[i]);
    }
  };
  if (prune && begun == limits.cut_layer + 1) cut();
  for (int64_t layer = begun; layer < layers; ++layer) {
    int64_t first = 0;
    for (size_t i = 0; i < batch.sequences.size(); first += batch.sequences[i++].count)
      out = (is_cut || i >= count ? left : all)[i % count].added(out, layer, first);
    if (layer + 1 == layers) batch.asked = index_tensor(last_rows(batch, count), device);
    out = run_layer(decoder, layer, out, batch, limits.recompute);
    if (published)  // nobody reads it any more
      for (KvCache& cache : first_caches) cache.layers[layer] = LayerCache();
    if (prune && layer == limits.cut_layer) cut();
  }
  const at::Tensor logits = decoder.logits(out);
  std::vector<PromptPass> passes;
  for (size_t i = 0; i < count; ++i)
    passes.push_back({logits[static_cast<int64_t>(i)], published ? kept_caches[i] : first_caches[i]});
  return passes;
}

std::vector<GroupLogits> group_logits(const Vlm& model, std::span<const StartedPrompt> prompts,
                                      std::span<const Group> groups, const GroupLimits& limits,
                                      LogProb logprob, bool prune) {
  const Decoder& decoder = model.decoder();
  const at::Device device = decoder.options().device();
  const std::vector<PromptPass> passes = run_prompts(model, prompts, groups, limits, logprob, prune);
  std::vector<GroupLogits> logits;

  // The completions behind them, each up to the token before its last one.
  std::vector<std::vector<KvCache>> caches;
  RaggedBatch tails;
  std::vector<int64_t> ids;
  std::vector<at::Tensor> places;
  std::vector<std::pair<size_t, size_t>> asked;  // group and completion
  for (size_t g = 0; g < groups.size(); ++g) {
    const Group& group = groups[g];
    const Prompt& prompt = group.prompt;
    logits.push_back({passes[g].first, std::vector<at::Tensor>(group.completions.size())});
    std::vector<KvCache>& own = caches.emplace_back(group.completions.size(), passes[g].cache);
    for (size_t i = 0; i < own.size(); ++i) {
      const int64_t count = counting_tokens(group, i, limits) - 1;
      if (count == 0) continue;
      asked.emplace_back(g, i);
      tails.sequences.push_back({&own[i], count});
      ids.insert(ids.end(), group.completions[i].begin(), group.completions[i].begin() + count);
      places.push_back(at::arange(prompt.next_position, prompt.next_position + count, at::kLong)
                           .expand({prompt.position_ids.size(0), count}));
    }
  }
  if (asked.empty()) return logits;
  tails.rope = model.rope(to_device(at::cat(places, 1), device));
  at::Tensor tail = decoder.embed(index_tensor(ids, device));
  for (int64_t layer = 0; layer < decoder.config().layers; ++layer)
    tail = run_layer(decoder, layer, tail, tails, limits.recompute);
  const at::Tensor behind = decoder.logits(tail);
  int64_t row = 0;
  for (size_t i = 0; i < asked.size(); ++i) {
    const auto [group, completion] = asked[i];
    logits[group].behind[completion] = behind.narrow(0, row, tails.sequences[i].count);
    row += tails.sequences[i].count;
  }
  return logits;
}

std::vector<std::vector<at::Tensor>> completion_logps(const Vlm& model,
                                                      std::span<const StartedPrompt> prompts,
                                                      std::span<const Group> groups,
                                                      const GroupLimits& limits, LogProb logprob, bool prune,
                                                      bool alike_once) {
  std::vector<Group> distinct;
  std::vector<std::vector<size_t>> place(
      groups.size());  // of each completion among its group's distinct ones
  for (size_t g = 0; g < groups.size(); ++g) {
    distinct.push_back({groups[g].prompt, groups[g].kept, {}, {}});
    Group& group = distinct.back();
    std::map<std::vector<int64_t>, size_t> places;
    for (const std::vector<int64_t>& ids : groups[g].completions) {
      const auto [known, fresh] = places.try_emplace(ids);
      if (fresh || !alike_once) {
        known->second = group.completions.size();
        group.completions.push_back(ids);
      }
      place[g].push_back(known->second);
    }
  }

  const std::vector<GroupLogits> logits = group_logits(model, prompts, distinct, limits, logprob, prune);
  std::vector<std::vector<at::Tensor>> out(groups.size());
  for (size_t g = 0; g < groups.size(); ++g) {
    std::vector<at::Tensor> each;
    for (size_t i = 0; i < distinct[g].completions.size(); ++i) {
      at::Tensor all = logits[g].first.unsqueeze(0);
      if (logits[g].behind[i].defined()) all = at::cat({all, logits[g].behind[i]});
      std::vector<int64_t> ids = distinct[g].completions[i];
      ids.resize(all.size(0));
      each.push_back(all.log_softmax(1).gather(1, index_tensor(ids, all.device()).unsqueeze(1)).squeeze(1));
    }
    for (const size_t i : place[g]) out[g].push_back(each[i]);
  }
  return out;
}

std::vector<GroupLoss> group_losses(Vlm& model, const LoraAdapter& adapter,
                                    std::span<const StartedPrompt> prompts, std::span<const Group> groups,
                                    const GroupLimits& limits, const GroupOptions& options) {
  for (const Group& group : groups) {
    const size_t count = group.completions.size();
    check(count > 1 && group.scores.size() == count, "training: a group has ", count, " completions and ",
          group.scores.size(), " scores; expected the same number, two or more");
    for (const auto& ids : group.completions) check(!ids.empty(), "training: a completion is empty");
  }
  std::vector<std::vector<at::Tensor>> base;
  if (options.kd_weight != 0) {
    const at::NoGradGuard no_grad;
    LoraAdapter::detach(model.mutable_decoder());
    base = completion_logps(model, prompts, groups, limits, options.logprob, /*prune=*/false,
                            /*alike_once=*/true);
    adapter.attach(model.mutable_decoder());
  }
  const std::vector<std::vector<at::Tensor>> now =
      completion_logps(model, prompts, groups, limits, options.logprob, /*prune=*/true,
                       /*alike_once=*/adapter.dropout() == 0);

  std::vector<GroupLoss> losses;
  for (size_t g = 0; g < groups.size(); ++g) {
    GroupLoss& loss = losses.emplace_back();
    loss.advantages = advantages(groups[g].scores);
    // Of each token its weight in the mean over the completions of the means over their tokens.
    std::vector<double> weights, gains;
    for (size_t i = 0; i < now[g].size(); ++i) {
      const int64_t length = now[g][i].size(0);
      weights.insert(weights.end(), length, 1.0 / static_cast<double>(length * std::ssize(now[g])));
      gains.insert(gains.end(), length, weights.back() * loss.advantages[i]);
      loss.logps.push_back(now[g][i].detach());
    }
    const at::Tensor lp = at::cat(now[g]);
    const auto of_tokens = [&](const std::vector<double>& all) {
      return to_device(at::tensor(all, at::kFloat), lp.device());
    };
    const at::Tensor reward = -options.reward_weight * ((lp - lp.detach()).exp() * of_tokens(gains)).sum();
    at::Tensor kd = at::zeros_like(reward);
    if (!base.empty()) {
      loss.ref_logps = base[g];
      const at::Tensor off = at::cat(base[g]) - lp;
      kd = options.kd_weight * ((off.exp() - off - 1) * of_tokens(weights)).sum();
    }
    loss.total = reward + kd;
    loss.reward = reward.detach();
    loss.kd = kd.detach();
  }
  return losses;
}

}  // namespace glimpse
