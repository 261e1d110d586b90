#include "glimpse/models/qwen2_5_vl.h"

#include <numeric>

#include "glimpse/models/config.h"

namespace glimpse {

using nlohmann::json;

std::string Qwen25Vl::canonical_name(std::string_view name) {
  const auto swap = [&](std::string_view from, std::string_view to) {
    return std::string(to) + std::string(name.substr(from.size()));
  };
  for (const auto& [from, to] : {std::pair<std::string_view, std::string_view>{"model.visual.", "visual."},
                                 {"model.language_model.", "model."},
                                 {"language_model.", "model."}})
    if (name.starts_with(from)) return swap(from, to);
  return std::string(name);
}

Weights Qwen25Vl::open_weights(const ModelSource& source, const json&) {
  return source.weights(canonical_name);
}

VisionShape Qwen25Vl::vision_shape(const json& config, const std::filesystem::path&) {
  const json& c = config.at("vision_config");
  const auto number = [&](const char* key) { return c.at(key).get<int64_t>(); };
  VisionShape shape;
  shape.depth = number("depth");
  shape.hidden = number("hidden_size");
  shape.heads = number("num_heads");
  shape.intermediate = number("intermediate_size");
  shape.patch = number("patch_size");
  shape.patch_values = c.value("in_chans", int64_t{3}) * c.value("temporal_patch_size", int64_t{2}) *
                       shape.patch * shape.patch;
  shape.merge = number("spatial_merge_size");
  shape.window_tokens = number("window_size") / shape.merge / shape.patch;
  shape.full_blocks = c.at("fullatt_block_indexes").get<std::vector<int64_t>>();
  const auto unit = static_cast<double>(shape.merge * shape.merge * shape.hidden);
  shape.projector = unit * (unit + static_cast<double>(number("out_hidden_size")));
  return shape;
}

std::unique_ptr<Vlm> Qwen25Vl::load(const ModelSource& source, const json& config, const LoadOptions& load) {
  const std::string where = source.where("config.json");
  const json& text = config.contains("text_config") ? config["text_config"] : config;
  check(load.clip.empty(), where, ": --clip ", load.clip.string(), " is for models whose encoder is CLIP's");
  auto model = std::make_unique<Qwen25Vl>();
  model->dir_ = source.path();
  DecoderConfig shape = decoder_config(text, config, where);
  shape.attention_bias = true;
  const json vision = need<json>(config, "vision_config", where);

  const json rope = rope_settings(text, config, where);
  check(!rope.empty(), where, ": rope_scaling is missing");
  model->mrope_section_ = need<std::vector<int64_t>>(rope, "mrope_section", where);
  model->rope_ = RopeScaling(text, config, {shape.head_dim, 1e6, 32768}, where, load.device);
  const int64_t pairs =
      std::accumulate(model->mrope_section_.begin(), model->mrope_section_.end(), int64_t{0});
  check(pairs == shape.head_dim / 2, where, ": mrope_section sums to ", pairs,
        ", expected half of the head size ", shape.head_dim);
  for (const int64_t section : model->mrope_section_)
    check(section >= 0, where, ": mrope_section holds ", section);
  check_full_attention(text, shape.layers, model->max_positions(), where);
  model->mrope_ = {config.value("image_token_id", int64_t{151655}),
                   config.value("video_token_id", int64_t{151656}),
                   vision.value("spatial_merge_size", int64_t{2}), vision.value("tokens_per_second", 2.0)};

  Weights weights = open_weights(source, config);
  shape.tied_head = merge_adapters(weights, load.adapters, shape.tied_head);
  const at::TensorOptions options = at::TensorOptions(load.dtype).device(load.device);
  model->visual_ = Qwen25Vit::load(vision, weights, options, load.weights);
  model->decoder_ = Decoder::load(shape, weights, "model.", "lm_head", options, load.weights);
  weights.expect_all_taken([&](std::string_view name) {
    // A tied checkpoint may still store its head; old ones store the rotary frequencies.
    return (shape.tied_head && name == "lm_head.weight") || name.ends_with("rotary_emb.inv_freq");
  });

  constexpr const char* file = "preprocessor_config.json";
  if (const json preprocessor = source.settings(file); !preprocessor.is_null()) {
    const QwenImageOptions image =
        named(source.where(file), [&] { return QwenImageOptions::from_json(preprocessor); });
    const auto same = [&](const char* key, int64_t here, int64_t encoder) {
      check(here == encoder, source.where(file), ": ", key, " is ", here, " but the encoder's is ", encoder);
    };
    same("patch_size", image.patch_size, vision.value("patch_size", int64_t{14}));
    same("merge_size", image.merge_size, model->mrope_.merge);
    same("temporal_patch_size", image.temporal_patch_size, vision.value("temporal_patch_size", int64_t{2}));
    model->image_options_ = image;
  }
  model->tokenizer_ = source.tokenizer();
  return model;
}

const Tokenizer& Qwen25Vl::tokenizer() const {
  check(tokenizer_ != nullptr, dir_.string(), ": no tokenizer.json and no vocab.json with merges.txt");
  return *tokenizer_;
}

Prompt Qwen25Vl::prompt(const std::vector<Message>& messages, const std::vector<Image>& images,
                        const ImageBounds& bounds) const {
  check(images.empty() || image_options_, dir_.string(), no_preprocessor);
  QwenImageOptions options = image_options_.value_or(QwenImageOptions());
  options.reference = bounds.reference();
  if (bounds.min_pixels) options.min_pixels = *bounds.min_pixels;
  if (bounds.max_pixels) options.max_pixels = *bounds.max_pixels;
  check(options.min_pixels > 0 && options.min_pixels <= options.max_pixels, "image bounds: min-pixels ",
        options.min_pixels, " must be positive and at most max-pixels ", options.max_pixels);
  std::vector<Patches> patches;
  for (const Image& image : images) patches.push_back(qwen_patches(image, options));
  std::vector<int64_t> question;
  const std::vector<int64_t> ids = chat_ids(messages, true, &question);
  Prompt out = prompt(ids, std::move(patches));
  set_question(out, ids, question, mrope_.image_token);
  return out;
}

std::vector<int64_t> Qwen25Vl::chat_ids(const std::vector<Message>& messages, bool add_generation_prompt,
                                        std::vector<int64_t>* question) const {
  return encode_chat(tokenizer(), messages, add_generation_prompt, QwenChat(), question);
}

Prompt Qwen25Vl::prompt(const std::vector<int64_t>& ids, std::vector<Patches> patches) const {
  std::vector<Grid> grids;
  for (const Patches& each : patches) grids.push_back(each.grid);
  Prompt out = widen(ids, std::move(patches), {mrope_.image_token, mrope_.image_token, mrope_.merge, true},
                     decoder_.config().vocab_size, max_positions());
  const MropePositions positions = mrope_positions(out.ids, grids, {}, {}, mrope_);
  out.position_ids = positions.ids;
  out.next_position = positions.next;
  return out;
}

std::unique_ptr<Encoding> Qwen25Vl::encoding(const std::vector<Patches>& patches,
                                             const VisionTaps& taps) const {
  return visual_.encoding(patches, taps);
}

Rope Qwen25Vl::rope(const at::Tensor& position_ids) const {
  return rope_.tables(mrope_angles(position_ids.flatten(1), mrope_section_, rope_.frequencies(position_ids)));
}

}  // namespace glimpse
