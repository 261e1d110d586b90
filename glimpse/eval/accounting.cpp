#include "glimpse/eval/accounting.h"

#include <algorithm>

namespace glimpse {

namespace {

using nlohmann::json;

// A cut in the order in which cuts happen.
struct Step {
  const Pruner* pruner;
  Cut cut;
};

std::vector<Step> steps_of(const PrunerChain& pruners) {
  std::vector<Step> steps;
  for (const auto& pruner : pruners) {
    std::vector<Cut> cuts = pruner->cuts();
    std::stable_sort(cuts.begin(), cuts.end(),
                     [](const Cut& a, const Cut& b) { return a.when() < b.when(); });
    for (const Cut& cut : cuts) steps.push_back({pruner.get(), cut});
  }
  std::stable_sort(steps.begin(), steps.end(),
                   [](const Step& a, const Step& b) { return a.cut.when() < b.cut.when(); });
  return steps;
}

// Padding goes through the encoder with the tiles that have it, but not through the projector.
double segment_vision_flops(const VisionShape& shape, const Segment& segment) {
  const Grid frames = shape.frames(segment.rows, segment.cols);
  const int64_t run = int64_t{frames.t} * frames.h * frames.w / (shape.merge * shape.merge);
  return vision_flops(shape, frames) - 2.0 * static_cast<double>(run - segment.count()) * shape.projector;
}

double segment_vision_flops_saved(const VisionShape& shape, const Segment& segment, int64_t block,
                                  double share) {
  const Grid frames = shape.frames(segment.rows, segment.cols);
  const int64_t tokens = int64_t{frames.h} * frames.w / (shape.merge * shape.merge);
  return frames.t * vision_flops_saved(shape, tokens, block, share);
}

}  // namespace

Accounting::Accounting(const Engine& engine, const ModelSource& source)
    : engine_(engine), decoder_(engine.model().decoder().config()) {
  try {
    vision_ = vision_shape(source.config(), source.path());
  } catch (const json::exception&) {  // a config that leaves out what is the format's default
  }
}

std::optional<int64_t> Accounting::token_pixels() const {
  if (!vision_) return {};
  return vision_->patch * vision_->merge;
}

// What a cut adds that has `rows` of the prompt before it.
double Accounting::overhead(const Pruner& pruner, const Cut& cut, const Answer& answer, const CutSizes& sizes,
                            double rows) const {
  const double q = decoder_.heads * decoder_.head_dim;
  const Taps taps = pruner.taps();
  double sum = pruner.operations(cut, sizes);
  if (cut.ahead != Cut::Ahead::none) sum += look_ahead_flops(decoder_, rows);
  if (taps.guide) {
    for (int64_t layer = 0; layer <= cut.layer; ++layer)
      sum += layer_flops(decoder_, layer, rows + 1) - layer_flops(decoder_, layer, rows);
    sum += static_cast<double>(taps.attention_layers.size()) * 2 * q * (rows + 1);
  }
  if (cut.layer == 0 && vision_)
    for (size_t tap = 0; tap < taps.vision_attention.size(); ++tap)
      for (const Segment& image : answer.segments) {
        const Grid frames = vision_->frames(image.rows, image.cols);
        const double patches = static_cast<double>(int64_t{frames.t} * frames.h * frames.w);
        // The class tokens' rows, or all patches' rows.
        sum += vision_->extra_tokens ? 2 * (patches + frames.t) * static_cast<double>(vision_->hidden)
                                     : 2 * patches * patches * static_cast<double>(vision_->hidden);
      }
  if (const auto tower = engine_.model().text_tower(); tower && taps.shared_space && vision_) {
    const double pieces = static_cast<double>(answer.question_rows.size()), all = answer.visual_tokens;
    const auto space = static_cast<double>(tower->width), living = static_cast<double>(sizes.living);
    for (const int64_t rows_read : answer.question_rows) sum += text_flops(*tower, rows_read);
    sum += 2 * all * static_cast<double>(vision_->hidden) * space + 2 * living * space * pieces;
  }
  return sum;
}

AnswerFlops Accounting::of(const Answer& answer, const PrunerChain& pruners) const {
  AnswerFlops out;
  const int64_t layers = decoder_.layers, total = answer.visual_tokens, text = answer.prompt_tokens - total;
  if (vision_) {
    out.vision = 0;
    for (const Segment& image : answer.segments) *out.vision += segment_vision_flops(*vision_, image);
  }
  // Rows that each layer runs on, and those its cache holds in the end.
  std::vector<int64_t> rows(layers, text + total), cached(layers, text + total);
  const std::vector<Step> steps = total > 0 ? steps_of(pruners) : std::vector<Step>();
  invariant(answer.left.size() == steps.size(), "an answer that did not go through these cuts");
  CutSizes sizes{total, total, answer.kept_tokens, decoder_.hidden_size};
  if (vision_) sizes.vision_head = vision_->hidden / vision_->heads;
  for (size_t i = 0; i < steps.size(); ++i) {
    const Step& step = steps[i];
    const int64_t living = sizes.living;
    const int64_t kept = sizes.kept = answer.left[i];
    out.prune += overhead(*step.pruner, step.cut, answer, sizes, static_cast<double>(text + living));
    if (step.cut.place == Cut::Place::within && out.vision)
      for (const Segment& image : answer.segments)
        *out.vision -= segment_vision_flops_saved(*vision_, image, step.cut.layer,
                                                  static_cast<double>(kept) / static_cast<double>(living));
    // What leaves before the projector is not projected.
    if (step.cut.place == Cut::Place::encoder && out.vision)
      *out.vision -= 2 * static_cast<double>(living - kept) * vision_->projector;
    const int64_t first = step.cut.when().layers_run;  // of the layers that run on what is left
    for (int64_t layer = 0; layer < layers; ++layer) {
      if (layer >= first) rows[layer] = text + kept;
      if (layer >= first || step.cut.trims_cache) cached[layer] = std::min(cached[layer], text + kept);
    }
    sizes.living = kept;
  }
  for (int64_t layer = 0; layer < layers; ++layer)
    out.prefill += layer_flops(decoder_, layer, static_cast<double>(rows[layer]));
  out.prefill += head_flops(decoder_);
  // The end token is not among the ids, but took a step to come.
  const auto ids = static_cast<int64_t>(answer.ids.size());
  const int64_t decoded = answer.finish_reason == "stop" ? ids : std::max<int64_t>(ids - 1, 0);
  for (int64_t token = 1; token <= decoded; ++token) {
    for (int64_t layer = 0; layer < layers; ++layer)
      out.decode += step_flops(decoder_, layer, static_cast<double>(cached[layer] + token));
    out.decode += head_flops(decoder_);
  }
  return out;
}

}  // namespace glimpse
