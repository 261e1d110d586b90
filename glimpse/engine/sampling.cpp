#include "glimpse/engine/sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "glimpse/base/check.h"
#include "glimpse/nn/index_tensor.h"

namespace glimpse {

Fields SamplingOptions::fields() {
  Fields fields;
  fields.add("temperature", temperature, "randomness of the answer (0: always the likeliest token)", {0, 100})
      .add("top_p", top_p, "sample from the likeliest tokens whose probabilities sum to this", {1e-9, 1})
      .add("top_k", top_k, "sample from this many of the likeliest tokens (0: all)", {0, 1e9})
      .add("repetition_penalty", repetition_penalty, "divide the score of tokens already seen by this",
           {1e-3, 1e3})
      .add("min_p", min_p, "sample only tokens at least this part as likely as the likeliest", {0, 1})
      .add("presence_penalty", presence_penalty, "take this off the score of tokens that the answer has",
           {-2, 2})
      .add("frequency_penalty", frequency_penalty,
           "take this off for each time that the answer has the token", {-2, 2})
      .add("seed", seed, "seed of the sampling (none: a random one)", {0, 9e15});
  return fields;
}

Sampler::Sampler(SamplingOptions options)
    : options_(options),
      generator_(options.seed ? static_cast<uint64_t>(*options.seed) : uint64_t{std::random_device{}()}) {}

bool Sampler::changes_logits() const {
  return options_.repetition_penalty != 1 || options_.presence_penalty != 0 ||
         options_.frequency_penalty != 0 || !options_.logit_bias.empty();
}

at::Tensor Sampler::penalised(at::Tensor logits, std::span<const int64_t> seen, int64_t answered) const {
  const auto put = [&](const std::vector<int64_t>& ids, const auto& change) {
    if (ids.empty()) return;
    const at::Tensor index = index_tensor(ids, logits.device());
    logits = logits.index_copy(0, index, change(logits.index_select(0, index)));
  };
  if (options_.repetition_penalty != 1) {
    const std::set<int64_t> unique(seen.begin(), seen.end());
    put({unique.begin(), unique.end()}, [&](const at::Tensor& own) {
      return at::where(own > 0, own / options_.repetition_penalty, own * options_.repetition_penalty);
    });
  }
  std::map<int64_t, double> added;
  for (const auto& [id, bias] : options_.logit_bias) {
    check(id >= 0 && id < logits.size(0), "logit_bias: token ", id, " is outside the vocabulary of ",
          logits.size(0));
    added[id] += bias;
  }
  if (options_.presence_penalty != 0 || options_.frequency_penalty != 0) {
    std::map<int64_t, int64_t> counts;
    for (const int64_t id : seen.last(answered)) ++counts[id];
    for (const auto& [id, count] : counts)
      added[id] -= options_.presence_penalty + options_.frequency_penalty * static_cast<double>(count);
  }
  std::vector<int64_t> ids;
  std::vector<double> amounts;
  for (const auto& [id, amount] : added) {
    ids.push_back(id);
    amounts.push_back(amount);
  }
  put(ids, [&](const at::Tensor& own) { return own + at::tensor(amounts, at::kDouble).to(own.options()); });
  return logits;
}

at::Tensor Sampler::candidates(const at::Tensor& logits, std::span<const int64_t> seen,
                               int64_t answered) const {
  // The order of the steps is Hugging Face's: penalties, temperature, top-k, top-p, min-p.
  const at::Tensor scores = changes_logits() ? penalised(logits, seen, answered) : logits;
  if (options_.temperature <= 0)
    return at::stack({scores.argmax().to(at::kDouble), scores.amax().to(at::kDouble)}).unsqueeze(1);
  const int64_t size = scores.size(0);
  const int64_t count = options_.top_k > 0 ? std::min(options_.top_k, size) : size;
  const auto [values, ids] = scores.to(at::kDouble).topk(count);
  // Differences first: a temperature near 0 takes the likeliest token, rather than a quotient of infinities.
  const at::Tensor tempered = (values - values[0]) / options_.temperature;
  return at::stack({ids.to(at::kDouble), tempered.softmax(0)});
}

int64_t Sampler::draw(const at::Tensor& candidates) {
  const at::Tensor table = candidates.contiguous();
  const int64_t count = table.size(1);
  const double *const ids = table.const_data_ptr<double>(), *const probability = ids + count;
  check_as(Error::Kind::internal, std::isfinite(probability[0]),
           "the logits of the next token are no numbers");
  if (count == 1) return static_cast<int64_t>(ids[0]);
  // Top-p keeps the smallest set that reaches the mass, at least one token; min-p those that are not too much
  // less likely than the likeliest.
  int64_t kept = 0;
  double mass = 0;
  while (kept < count &&
         (kept == 0 || (mass < options_.top_p && probability[kept] >= options_.min_p * probability[0])))
    mass += probability[kept++];
  double point = std::uniform_real_distribution<double>(0, mass)(generator_);
  int64_t choice = 0;
  while (choice + 1 < kept && (point -= probability[choice]) > 0) ++choice;
  return static_cast<int64_t>(ids[choice]);
}

}  // namespace glimpse
