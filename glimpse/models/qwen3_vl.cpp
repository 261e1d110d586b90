#include "glimpse/models/qwen3_vl.h"

#include <algorithm>

#include "glimpse/models/config.h"
#include "glimpse/nn/ops.h"

namespace glimpse {

using nlohmann::json;

namespace {

// Qwen3 norms queries and keys head by head.
HeadStep head_norms(const Weights& weights, const std::string& block, at::TensorOptions options,
                    const DecoderConfig& shape) {
  const auto norm = [&](const char* name) { return weights.take(block + name, {shape.head_dim}, options); };
  return [q_norm = norm("self_attn.q_norm.weight"), k_norm = norm("self_attn.k_norm.weight"),
          eps = shape.rms_norm_eps](at::Tensor& q, at::Tensor& k) {
    q = rms_norm(q, q_norm, eps);
    k = rms_norm(k, k_norm, eps);
  };
}

// A picture for each temporal slice.
std::vector<Patches> slices(const Patches& medium) {
  const Grid slice{1, medium.grid.h, medium.grid.w};
  const int64_t rows = int64_t{slice.h} * slice.w;
  const bool fits = medium.grid.t > 1 && rows > 0 && medium.pixel_values.size(0) == medium.grid.t * rows;
  if (!fits) return {medium};  // widen() says what is wrong, if anything
  std::vector<Patches> out;
  for (int t = 0; t < medium.grid.t; ++t)
    out.push_back({medium.pixel_values.narrow(0, t * rows, rows), slice, medium.area});
  return out;
}

}  // namespace

Qwen3Vl::Qwen3Vl()
    : QwenVl({.rope_theta = 5e6,
              .max_positions = 128000,
              .image = QwenImageOptions::qwen3(),
              .system_message = false,
              .interleaved = true,
              .evaluated = false}) {}

VisionShape Qwen3Vl::vision_shape(const json& config, const std::filesystem::path& dir) {
  const json& c = config.at("vision_config");
  VisionShape shape = QwenVl::vision_shape(config, dir);
  for (int64_t block = 0; block < shape.depth; ++block) shape.full_blocks.push_back(block);
  shape.mlp_matrices = 2;
  shape.projector *= 1 + static_cast<double>(c.at("deepstack_visual_indexes").size());
  return shape;
}

std::unique_ptr<Vlm> Qwen3Vl::load(const ModelSource& source, const json& config, const LoadOptions& load) {
  const std::string where = source.where("config.json");
  const json& text = text_config(config);
  check(load.clip.empty(), where, ": --clip ", load.clip.string(), " is for models whose encoder is CLIP's");
  auto model = std::make_unique<Qwen3Vl>();
  model->dir_ = source.path();
  DecoderConfig shape = decoder_config(text, config, where);
  check(!setting(text, "attention_bias", false, where), where, ": attention_bias is not supported");
  const json vision = need<json>(config, "vision_config", where);
  model->read_positions(text, config, shape, source, load.device);
  model->components_ = interleaved_components(model->mrope_section_).to(load.device);

  Weights weights = open_weights(source, config);
  shape.tied_head = merge_adapters(weights, load.adapters, shape.tied_head);
  const at::TensorOptions options = at::TensorOptions(load.dtype).device(load.device);
  model->visual_ = Qwen3Vit::load(vision, weights, options, load.weights);
  const auto taps = std::ssize(model->visual_.deepstack());
  check(taps < shape.layers, where, ": deepstack_visual_indexes names ", taps,
        " blocks, but the language model has only ", shape.layers, " layers");
  model->decoder_ = Decoder::load(shape, weights, "model.", "lm_head", options, load.weights,
                                  [&](const Weights& from, const std::string& block, at::TensorOptions how) {
                                    return head_norms(from, block, how, shape);
                                  });
  weights.expect_all_taken(
      [&](std::string_view name) { return shape.tied_head && name == "lm_head.weight"; });
  model->read_parts(source, vision);
  return model;
}

Prompt Qwen3Vl::prompt(const std::vector<int64_t>& ids, std::vector<Patches> patches) const {
  // Every slice is a picture with a place of its own, and is marked as one.
  std::vector<Patches> pictures;
  std::vector<Grid> grids;
  std::vector<int64_t> media;
  for (size_t i = 0; i < patches.size(); ++i)
    for (Patches& slice : slices(patches[i])) {
      grids.push_back(slice.grid);
      pictures.push_back(std::move(slice));
      media.push_back(static_cast<int64_t>(i));
    }
  const int64_t image = mrope_.image_token, video = mrope_.video_token;
  std::vector<int64_t> marks = ids;
  std::replace(marks.begin(), marks.end(), video, image);
  const int64_t vocabulary = decoder_.config().vocab_size;
  check(marks == ids || (video >= 0 && video < vocabulary), "prompt: the video token ", video,
        " is outside the vocabulary of ", vocabulary);
  Prompt out =
      widen(marks, std::move(pictures), {image, image, mrope_.merge, true}, vocabulary, max_positions());
  const MropePositions positions = mrope_positions(out.ids, grids, {}, {}, mrope_);
  out.position_ids = positions.ids;
  out.next_position = positions.next;

  size_t place = 0;  // of the next segment in the ids
  for (size_t i = 0; i < out.segments.size(); ++i) {
    Segment& segment = out.segments[i];
    segment.medium = media[i];
    while (marks[place] != image) ++place;
    check(ids[place] == video || patches[media[i]].grid.t == 1, "prompt: image ", media[i] + 1, " has ",
          patches[media[i]].grid.t, " temporal slices, which only videos have");
    for (int64_t token = 0; token < segment.count(); ++token)
      out.ids[out.visual_rows[segment.first + token]] = ids[place];
    const bool widened = place + 1 < marks.size() && marks[place + 1] == image;
    place += widened ? segment.count() : 1;
  }
  return out;
}

std::unique_ptr<Encoding> Qwen3Vl::encoding(const std::vector<Patches>& patches,
                                            const VisionTaps& taps) const {
  return visual_.encoding(patches, taps);
}

Rope Qwen3Vl::rope(const at::Tensor& position_ids) const {
  return rope_.tables(interleaved_angles(position_ids.flatten(1), components_.to(position_ids.device()),
                                         rope_.frequencies(position_ids)));
}

int64_t Qwen3Vl::shallow_block() const {
  return visual_.deepstack().empty() ? visual_.depth() / 4 : visual_.deepstack()[0];
}

}  // namespace glimpse
