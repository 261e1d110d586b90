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

}  // namespace

Qwen3Vl::Qwen3Vl()
    : QwenVl({.rope_theta = 5e6,
              .max_positions = 128000,
              .image = QwenImageOptions::qwen3(),
              .system_message = false,
              .interleaved = true,
              .slices_apart = true,
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
