#include "glimpse/eval/accounting.h"

#include <algorithm>
#include <cmath>

#include "glimpse/prune/shares.h"
#include "glimpse/prune/similarity.h"
#include "glimpse/prune/visionzip.h"
#include "glimpse/prune/vscan.h"

namespace glimpse {

namespace {

using nlohmann::json;

// A cut in the order in which cuts happen.
struct Step {
  const Pruner* pruner;
  Cut cut;
  size_t index;  // among its pruner's cuts
  bool last;     // of its pruner
};

std::vector<Step> steps_of(const PrunerChain& pruners) {
  std::vector<Step> steps;
  for (const auto& pruner : pruners) {
    std::vector<Cut> cuts = pruner->cuts();
    std::stable_sort(cuts.begin(), cuts.end(),
                     [](const Cut& a, const Cut& b) { return a.when() < b.when(); });
    for (size_t i = 0; i < cuts.size(); ++i)
      steps.push_back({pruner.get(), cuts[i], i, i + 1 == cuts.size()});
  }
  std::stable_sort(steps.begin(), steps.end(),
                   [](const Step& a, const Step& b) { return a.cut.when() < b.cut.when(); });
  return steps;
}

// What VScan takes from the encoder by its own rule: of whole window shares the local half may come out
// smaller.
int64_t vscan_start(const Answer& answer, const json& settings) {
  int64_t sum = 0;
  for (const Segment& image : answer.segments) {
    const int64_t keep = part_of(image.count(), settings.at("keep")), half = keep / 2;
    const int64_t windows = vscan_windows(image.rows, image.cols, settings.at("window"));
    sum += settings.at("whole_shares").get<bool>() ? half / windows * windows + keep - half : keep;
  }
  return sum;
}

// How many visual tokens a cut that is not the last one leaves of those `living`.
int64_t planned(const Step& step, const Answer& answer, int64_t living, const Budget& budget) {
  const int64_t total = answer.visual_tokens, in_the_end = answer.kept_tokens;
  const std::string name = step.pruner->name();
  const json settings = step.pruner->settings();
  const auto own = [&](const char* key) { return settings.at(key).get<double>(); };
  int64_t left = in_the_end;
  if (name == "divprune") left = std::llrint(own("keep") * static_cast<double>(total));
  if (name == "cdpruner") left = std::llround(own("keep") * static_cast<double>(total));
  if (name == "dart" || name == "random") left = part_of(total, own("keep"));
  if (name == "visionzip")
    left = VisionZip::Options{settings.at("dominant"), settings.at("contextual")}.kept(total);
  if (name == "pyramiddrop") {
    const auto shares = settings.at("keep").get<std::vector<double>>();
    const auto target = budget.of(total);
    const double whole =
        static_cast<double>(total) / static_cast<double>(std::max<int64_t>(target.value_or(1), 1));
    const double done = static_cast<double>(step.index + 1) / static_cast<double>(shares.size());
    left = target ? grown(budget, total, std::pow(whole, 1 - done)).of(total).value_or(left)
                  : part_of(total, shares[step.index]);
  }
  if (name == "vscan") {
    const auto shares = settings.at("layer_keep").get<std::vector<double>>();
    double later = 1;
    for (size_t i = step.index; i < shares.size(); ++i) later *= shares[i];
    if (budget.of(total))
      left = grown(budget, total, 1 / std::max(later, 1e-9)).of(total).value_or(left);
    else
      left = step.index == 0 ? vscan_start(answer, settings) : part_of(living, shares[step.index - 1]);
  }
  return std::clamp<int64_t>(left, std::min(in_the_end, living), living);
}

// Cosines of n rows of width d with each other; blocks of 512 on and right of the diagonal.
double cosine_flops(double n, double d) {
  double sum = 0;
  for (double row = 0; row < n; row += 512) sum += 2 * std::min(512.0, n - row) * (n - row) * d;
  return sum;
}

}  // namespace

Accounting::Accounting(const Engine& engine, const ModelSource& source)
    : engine_(engine), decoder_(engine.model().decoder().config()) {
  try {
    vision_ = VisionShape::of(source.path(), source.config());
  } catch (const json::exception&) {  // a config that leaves out what is the format's default
  }
}

std::optional<int64_t> Accounting::token_pixels() const {
  if (!vision_) return {};
  return vision_->patch * vision_->merge;
}

// What choosing `kept` of `living` tokens adds; `rows` is the prompt's rows before the cut.
double Accounting::overhead(const Pruner& pruner, const Cut& cut, const Answer& answer, double rows,
                            double living, double kept) const {
  const double width = decoder_.hidden_size, q = decoder_.heads * decoder_.head_dim;
  const Taps taps = pruner.taps();
  double sum = 0;
  if (cut.ahead != Cut::Ahead::none) sum += look_ahead_flops(decoder_, rows);
  if (taps.guide) {
    const double end = cut.layer + 1;
    sum += end * (layer_flops(decoder_, rows + 1) - layer_flops(decoder_, rows));
    sum += static_cast<double>(taps.attention_layers.size()) * 2 * q * (rows + 1);
    if (engine_.modules()) sum += vip_flops(engine_.modules()->config.vip, living);
  }
  if (cut.layer == 0 && vision_)
    for (size_t tap = 0; tap < taps.vision_attention.size(); ++tap)
      for (const Segment& image : answer.segments) {
        const double patches = static_cast<double>(image.count() * vision_->merge * vision_->merge);
        // The class token's row, or all patches' rows.
        sum += vision_->extra_tokens ? 2 * (patches + 1) * static_cast<double>(vision_->hidden)
                                     : 2 * patches * patches * static_cast<double>(vision_->hidden);
      }
  const std::string name = pruner.name();
  const json settings = pruner.settings();
  if (name == "divprune" || name == "cdpruner") {
    const bool at_once = living <= Cosines::most_at_once;
    if (at_once || name == "divprune") sum += cosine_flops(living, width);
    if (!at_once) sum += 2 * kept * living * width;
  }
  if (name == "cdpruner") sum += living * kept * (kept - 1);
  if (name == "cdpruner" && !taps.shared_space) sum += 2 * living * width;
  if (const auto tower = engine_.model().text_tower(); tower && taps.shared_space && vision_) {
    const double pieces = static_cast<double>(answer.question_rows.size()), all = answer.visual_tokens;
    const auto space = static_cast<double>(tower->width);
    for (const int64_t rows_read : answer.question_rows) sum += text_flops(*tower, rows_read);
    sum += 2 * all * static_cast<double>(vision_->hidden) * space + 2 * living * space * pieces;
  }
  if (name == "dart") {
    const double own = std::min(settings.at("image_pivots").get<double>(), kept);
    sum += 2 * (own + settings.at("text_pivots").get<double>()) * living * width;
  }
  if (name == "vscan" && cut.layer == 0) sum += 2 * (living - kept) * kept * width;
  if (name == "visionzip" && vision_) {
    const VisionZip::Options own{settings.at("dominant"), settings.at("contextual")};
    const double targets = std::max(1.0, std::round(kept * own.merging_part(answer.visual_tokens)));
    sum += 2 * (living - kept) * targets * static_cast<double>(vision_->hidden / vision_->heads);
  }
  return sum;
}

AnswerFlops Accounting::of(const Answer& answer, const PrunerChain& pruners, const Budget& budget) const {
  AnswerFlops out;
  const int64_t layers = decoder_.layers, total = answer.visual_tokens, text = answer.prompt_tokens - total;
  if (vision_) {
    out.vision = 0;
    for (const Segment& image : answer.segments)
      *out.vision += vision_flops(*vision_, {1, static_cast<int>(image.rows * vision_->merge),
                                             static_cast<int>(image.cols * vision_->merge)});
  }
  // Rows that each layer runs on, and those its cache holds in the end.
  std::vector<int64_t> rows(layers, text + total), cached(layers, text + total);
  const std::vector<Step> steps = total > 0 ? steps_of(pruners) : std::vector<Step>();
  const Pruner* budgeted = nullptr;  // the budget is for the chain's last cut
  for (const auto& pruner : pruners)
    for (const Cut& cut : pruner->cuts())
      if (!steps.empty() && cut.when() == steps.back().cut.when()) budgeted = pruner.get();
  int64_t living = total;
  for (size_t i = 0; i < steps.size(); ++i) {
    const Step& step = steps[i];
    const Budget own = step.pruner == budgeted ? budget : Budget();
    const int64_t kept = i + 1 == steps.size() ? answer.kept_tokens : planned(step, answer, living, own);
    out.prune += overhead(*step.pruner, step.cut, answer, static_cast<double>(text + living),
                          static_cast<double>(living), static_cast<double>(kept));
    // What leaves before the projector is not projected.
    if (step.cut.place == Cut::Place::encoder && out.vision)
      *out.vision -= 2 * static_cast<double>(living - kept) * vision_->projector;
    const int64_t first = step.cut.when().layers_run;  // of the layers that run on what is left
    for (int64_t layer = 0; layer < layers; ++layer) {
      if (layer >= first) rows[layer] = text + kept;
      if (layer >= first || step.cut.trims_cache) cached[layer] = std::min(cached[layer], text + kept);
    }
    living = kept;
  }
  for (const int64_t count : rows) out.prefill += layer_flops(decoder_, static_cast<double>(count));
  out.prefill += head_flops(decoder_);
  // The end token is not among the ids, but took a step to come.
  const auto ids = static_cast<int64_t>(answer.ids.size());
  const int64_t decoded = answer.finish_reason == "stop" ? ids : std::max<int64_t>(ids - 1, 0);
  for (int64_t token = 1; token <= decoded; ++token) {
    for (const int64_t length : cached)
      out.decode += step_flops(decoder_, static_cast<double>(length + token));
    out.decode += head_flops(decoder_);
  }
  return out;
}

}  // namespace glimpse
