#include "glimpse/engine/sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "glimpse/nn/index_tensor.h"

namespace glimpse {

Fields SamplingOptions::fields() {
  Fields fields;
  fields.add("temperature", temperature, "randomness of the answer (0: always the likeliest token)", {0, 100})
      .add("top_p", top_p, "sample from the likeliest tokens whose probabilities sum to this", {1e-9, 1})
      .add("top_k", top_k, "sample from this many of the likeliest tokens (0: all)", {0, 1e9})
      .add("repetition_penalty", repetition_penalty, "divide the score of tokens already seen by this",
           {1e-3, 1e3})
      .add("seed", seed, "seed of the sampling (none: a random one)", {0, 9e15});
  return fields;
}

Sampler::Sampler(SamplingOptions options)
    : options_(options),
      generator_(options.seed ? static_cast<uint64_t>(*options.seed) : uint64_t{std::random_device{}()}) {}

at::Tensor Sampler::candidates(const at::Tensor& logits, const std::vector<int64_t>& seen) const {
  // The order of the steps is Hugging Face's: penalty, temperature, top-k, top-p.
  at::Tensor scores = logits;
  if (options_.repetition_penalty != 1) {
    const std::set<int64_t> unique(seen.begin(), seen.end());
    const at::Tensor index = index_tensor(std::vector(unique.begin(), unique.end()), logits.device());
    const at::Tensor own = scores.index_select(0, index);
    scores = scores.index_copy(
        0, index, at::where(own > 0, own / options_.repetition_penalty, own * options_.repetition_penalty));
  }
  if (options_.temperature <= 0) return scores.argmax().to(at::kDouble).expand({2, 1});
  const int64_t size = scores.size(0);
  const int64_t count = options_.top_k > 0 ? std::min(options_.top_k, size) : size;
  const auto [values, ids] = (scores / options_.temperature).topk(count);
  return at::stack({ids.to(at::kDouble), values.softmax(0).to(at::kDouble)});
}

int64_t Sampler::draw(const at::Tensor& candidates) {
  const at::Tensor table = candidates.contiguous();
  const int64_t count = table.size(1);
  const double *const ids = table.const_data_ptr<double>(), *const probability = ids + count;
  if (count == 1) return static_cast<int64_t>(ids[0]);
  // Top-p keeps the smallest set that reaches the mass, at least one token.
  int64_t kept = 0;
  double mass = 0;
  while (kept < count && (kept == 0 || mass < options_.top_p)) mass += probability[kept++];
  double point = std::uniform_real_distribution<double>(0, mass)(generator_);
  int64_t choice = 0;
  while (choice + 1 < kept && (point -= probability[choice]) > 0) ++choice;
  return static_cast<int64_t>(ids[choice]);
}

}  // namespace glimpse
