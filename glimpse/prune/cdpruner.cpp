#include "glimpse/prune/cdpruner.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "glimpse/nn/flop_count.h"
#include "glimpse/nn/kernels.h"
#include "glimpse/prune/shares.h"

namespace glimpse {

Fields CdPruner::Options::fields() {
  Fields fields;
  fields.add("keep", keep, "fraction of the visual tokens to keep", {1e-9, 1});
  fields.add(
      "relevance", relevance,
      "to the question, by the embeddings of clip (where the model has its text tower) or, as words, by "
      "those of the language model");
  return fields;
}

CdPruner::CdPruner(Options options) : options_(std::move(options)) {
  const std::string& by = options_.relevance;
  check(by == "clip" || by == "words", "cdpruner: relevance: expected clip or words, got '", by, "'");
  check(by == "words" || options_.text_tower,
        "cdpruner: relevance=clip needs CLIP's text tower, which this model's checkpoint is without");
}

Taps CdPruner::taps() const {
  Taps taps;
  taps.shared_space = options_.relevance == "clip";
  return taps;
}

at::Tensor cdpruner_relevance(const at::Tensor& image, const at::Tensor& text, bool negate) {
  flop_count::add(2 * image.numel() * text.size(0));
  at::Tensor r = at::mm(unit_rows(image), unit_rows(text).t()).mean(1);
  if (negate) r = -r;
  const at::Tensor low = r.min(), spread = r.max() - low;
  if (spread.item<float>() <= 0) return at::ones_like(r);
  return (r - low + 1e-6) / spread;
}

std::vector<int64_t> cdpruner_order(const at::Tensor& features, const at::Tensor& relevance, int64_t count,
                                    int64_t at_once) {
  const int64_t n = features.size(0);
  count = std::min(count, n);
  std::vector<int64_t> order;
  if (count <= 0) return order;
  const at::Tensor unit = unit_rows(features), r = relevance.to(at::kCPU, at::kFloat);
  const Cosines cosines(unit, at_once);
  // gain[j]: what token j would add to the determinant; row t of `factor` is the kernel's Cholesky factor.
  at::Tensor gain = unit.square().sum(1).cpu() * r * r;
  at::Tensor factor = at::empty({count, n}), known = at::empty({n});
  const at::Tensor rounding =
      1e-6F * gain;  // a gain this small, beside the token's first one, is nothing else
  constexpr float chosen = -std::numeric_limits<float>::infinity();
  while (static_cast<int64_t>(order.size()) < count) {
    const auto t = static_cast<int64_t>(order.size());
    gain.masked_fill_(gain <= rounding, chosen);
    const int64_t best = gain.argmax().item<int64_t>();
    const float d = gain[best].item<float>();
    if (!(d > 0)) break;
    at::Tensor row = cosines.row(best) * r * r[best];
    if (t > 0) {
      // The known rows' share, on this thread: a product so small is not worth waking others hundreds of
      // times.
      const at::Tensor weights = factor.narrow(0, 0, t).select(1, best).contiguous();
      flop_count::add(2 * t * n);
      kernels::mix(weights.const_data_ptr<float>(), t, 1, t, factor.const_data_ptr<float>(), n,
                   known.data_ptr<float>());
      row -= known;
    }
    row /= std::sqrt(d);
    factor[t].copy_(row);
    gain -= row * row;
    gain[best] = chosen;
    order.push_back(best);
  }
  at::Tensor left = r.clone();
  for (const int64_t token : order) left[token] = chosen;
  while (static_cast<int64_t>(order.size()) < count) {
    order.push_back(left.argmax().item<int64_t>());
    left[order.back()] = chosen;
  }
  return order;
}

// [living] of one image's tokens.
at::Tensor CdPruner::relevance(const View& view, const ImageShare& share) const {
  if (options_.relevance == "clip") {
    const at::Tensor tokens = view.living.narrow(0, share.first, share.living);
    return cdpruner_relevance(view.shared_image.index_select(0, tokens), view.shared_question, true);
  }
  if (view.question.numel() == 0) return at::ones({share.living});
  const at::Tensor words = view.text_hidden.index_select(0, view.question).to(at::kFloat);
  return cdpruner_relevance(view.hidden.narrow(0, share.first, share.living), words.mean(0, true), false);
}

Selection CdPruner::select(const View& view, const Cut&, const Budget& budget) const {
  const auto own = [&](int64_t n) { return std::llround(options_.keep * static_cast<double>(n)); };
  return select_by_image(view, budget, own, [&](const ImageShare& share) {
    if (share.keep == 0) return Selection();
    const at::Tensor features = view.hidden.narrow(0, share.first, share.living);
    Selection out{cdpruner_order(features, relevance(view, share), share.keep), {}, {}};
    std::sort(out.keep.begin(), out.keep.end());
    return out;
  });
}

}  // namespace glimpse
