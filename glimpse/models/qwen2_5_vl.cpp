#include "glimpse/models/qwen2_5_vl.h"

#include "glimpse/models/config.h"

namespace glimpse {

using nlohmann::json;

VisionShape Qwen25Vl::vision_shape(const json& config, const std::filesystem::path& dir) {
  const json& c = config.at("vision_config");
  VisionShape shape = QwenVl::vision_shape(config, dir);
  shape.window_tokens = c.at("window_size").get<int64_t>() / shape.merge / shape.patch;
  shape.full_blocks = c.at("fullatt_block_indexes").get<std::vector<int64_t>>();
  return shape;
}

std::unique_ptr<Vlm> Qwen25Vl::load(const ModelSource& source, const json& config, const LoadOptions& load) {
  const std::string where = source.where("config.json");
  const json& text = text_config(config);
  check(load.clip.empty(), where, ": --clip ", load.clip.string(), " is for models whose encoder is CLIP's");
  auto model = std::make_unique<Qwen25Vl>();
  model->dir_ = source.path();
  DecoderConfig shape = decoder_config(text, config, where);
  shape.attention_bias = true;
  const json vision = need<json>(config, "vision_config", where);
  model->read_positions(text, config, shape, source, load.device);

  Weights weights = open_weights(source, config);
  shape.tied_head = merge_adapters(weights, load.adapters, shape.tied_head);
  const at::TensorOptions options = at::TensorOptions(load.dtype).device(load.device);
  model->visual_ = Qwen25Vit::load(vision, weights, options, load.weights);
  model->decoder_ = Decoder::load(shape, weights, "model.", "lm_head", options, load.weights);
  weights.expect_all_taken([&](std::string_view name) {
    // A tied checkpoint may still store its head; old ones store the rotary frequencies.
    return (shape.tied_head && name == "lm_head.weight") || name.ends_with("rotary_emb.inv_freq");
  });
  model->read_parts(source, vision);
  return model;
}

std::unique_ptr<Encoding> Qwen25Vl::encoding(const std::vector<Patches>& patches,
                                             const VisionTaps& taps) const {
  return visual_.encoding(patches, taps);
}

Rope Qwen25Vl::rope(const at::Tensor& position_ids) const {
  return rope_.tables(mrope_angles(position_ids.flatten(1), mrope_section_, rope_.frequencies(position_ids)));
}

}  // namespace glimpse
