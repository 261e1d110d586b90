#include "glimpse/prune/cdpruner.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "glimpse/nn/flop_count.h"
#include "glimpse/nn/kernels.h"
#include "glimpse/nn/ops.h"
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
  return at::where(spread <= 0, at::ones_like(r), (r - low + 1e-6) / spread);
}

namespace {

// weights [t] times rows [t, n] -> out [n].
void mix_rows(const at::Tensor& weights, const at::Tensor& rows, at::Tensor& out) {
  const int64_t t = rows.size(0), n = rows.size(1);
  flop_count::add(2 * t * n);
  if (!has_kernel(rows)) {
    at::mv_out(out, rows.t(), weights);
    return;
  }
  // On this thread: a product so small is not worth waking others hundreds of times.
  kernels::mix(weights.const_data_ptr<float>(), t, 1, t, rows.const_data_ptr<float>(), n,
               out.data_ptr<float>());
}

}  // namespace

std::vector<int64_t> cdpruner_order(const at::Tensor& features, const at::Tensor& relevance, int64_t count,
                                    int64_t at_once) {
  const int64_t n = features.size(0);
  count = std::min(count, n);
  if (count <= 0) return {};
  const at::Tensor unit = unit_rows(features), r = relevance.to(unit.options());
  const Cosines cosines(unit, at_once);
  // gain[j]: what token j would add to the determinant; row t of `factor` is the kernel's Cholesky factor.
  at::Tensor gain = unit.square().sum(1) * r * r;
  at::Tensor factor = at::empty({count, n}, unit.options()), known = at::empty_like(gain);
  const at::Tensor rounding =
      1e-6F * gain;  // a gain this small, beside the token's first one, is nothing else
  constexpr float chosen = -std::numeric_limits<float>::infinity();
  // What is chosen stays beside the features, and with it how much each gained: a device that is asked for
  // every choice would wait every time. From the first one on that gains nothing the rest means nothing.
  at::Tensor order = at::empty({count}, unit.options().dtype(at::kLong)),
             gains = at::full({count}, chosen, unit.options());
  for (int64_t t = 0; t < count; ++t) {
    gain.masked_fill_(gain <= rounding, chosen);
    const at::Tensor best = gain.argmax(0, true), d = picked(gain, 0, best);
    if (d.is_cpu() && !(*d.const_data_ptr<float>() > 0)) break;
    order.narrow(0, t, 1).copy_(best);
    gains[t].copy_(d);
    at::Tensor row = cosines.row(best) * r * picked(r, 0, best);
    if (t > 0) {
      const at::Tensor rows = factor.narrow(0, 0, t);
      mix_rows(picked(rows, 1, best).contiguous(), rows, known);
      row -= known;
    }
    row /= d.sqrt();
    factor[t].copy_(row);
    gain -= row * row;
    strike(gain, best, chosen);
  }
  // One copy for all; float64 holds indices and float32 alike.
  const at::Tensor all = at::cat({order.to(at::kDouble), gains.to(at::kDouble), r.to(at::kDouble)}).cpu();
  const double *const index = all.const_data_ptr<double>(), *const gained = index + count;
  std::vector<int64_t> out;
  for (int64_t t = 0; t < count && gained[t] > 0; ++t) out.push_back(static_cast<int64_t>(index[t]));
  std::vector<double> left(gained + count, gained + count + n);
  for (const int64_t token : out) left[token] = chosen;
  while (std::ssize(out) < count) {
    out.push_back(std::max_element(left.begin(), left.end()) - left.begin());
    left[out.back()] = chosen;
  }
  return out;
}

// [living] of one image's tokens.
at::Tensor CdPruner::relevance(const View& view, const SegmentShare& share) const {
  if (options_.relevance == "clip") {
    const at::Tensor tokens = view.index.narrow(0, share.first, share.living);
    return cdpruner_relevance(view.shared_image.index_select(0, tokens), view.shared_question, true);
  }
  if (view.question.numel() == 0) return at::ones({share.living}, view.hidden.options().dtype(at::kFloat));
  const at::Tensor words = view.text_hidden.index_select(0, view.question).to(at::kFloat);
  return cdpruner_relevance(view.hidden.narrow(0, share.first, share.living), words.mean(0, true), false);
}

Selection CdPruner::select(const View& view, const Cut&, const Budget& budget) const {
  const auto own = [&](int64_t n) { return std::llround(options_.keep * static_cast<double>(n)); };
  return select_by_segment(view, budget, own, [&](const SegmentShare& share) {
    if (share.keep == 0) return Selection();
    const at::Tensor features = view.hidden.narrow(0, share.first, share.living);
    Selection out{cdpruner_order(features, relevance(view, share), share.keep), {}, {}};
    std::sort(out.keep.begin(), out.keep.end());
    return out;
  });
}

double CdPruner::operations(const Cut&, const CutSizes& sizes) const {
  const auto n = static_cast<double>(sizes.living), d = static_cast<double>(sizes.width),
             kept = static_cast<double>(sizes.kept);
  const bool at_once = sizes.living <= Cosines::most_at_once;
  const double words = options_.relevance == "words" ? 2 * n * d : 0;
  return (at_once ? Cosines::operations(n, d) : 2 * kept * n * d) + n * kept * (kept - 1) + words;
}

}  // namespace glimpse
