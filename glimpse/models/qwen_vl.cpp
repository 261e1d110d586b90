#include "glimpse/models/qwen_vl.h"

#include <numeric>

#include "glimpse/models/config.h"

namespace glimpse {

using nlohmann::json;

std::string QwenVl::canonical_name(std::string_view name) {
  const auto swap = [&](std::string_view from, std::string_view to) {
    return std::string(to) + std::string(name.substr(from.size()));
  };
  for (const auto& [from, to] : {std::pair<std::string_view, std::string_view>{"model.visual.", "visual."},
                                 {"model.language_model.", "model."},
                                 {"language_model.", "model."}})
    if (name.starts_with(from)) return swap(from, to);
  return std::string(name);
}

Weights QwenVl::open_weights(const ModelSource& source, const json&) {
  return source.weights(canonical_name);
}

VisionShape QwenVl::vision_shape(const json& config, const std::filesystem::path&) {
  const json& c = config.at("vision_config");
  const auto number = [&](const char* key) { return c.at(key).get<int64_t>(); };
  VisionShape shape;
  shape.depth = number("depth");
  shape.hidden = number("hidden_size");
  shape.heads = number("num_heads");
  shape.intermediate = number("intermediate_size");
  shape.patch = number("patch_size");
  const int64_t channels = c.value("in_channels", c.value("in_chans", int64_t{3}));
  shape.patch_values = channels * c.value("temporal_patch_size", int64_t{2}) * shape.patch * shape.patch;
  shape.merge = number("spatial_merge_size");
  const auto unit = static_cast<double>(shape.merge * shape.merge * shape.hidden);
  shape.projector = unit * (unit + static_cast<double>(number("out_hidden_size")));
  return shape;
}

void QwenVl::read_positions(const json& text, const json& config, const DecoderConfig& shape,
                            const ModelSource& source, at::Device device) {
  const std::string where = source.where("config.json");
  const json rope = rope_settings(text, config, where);
  check(!rope.empty(), where, ": rope_scaling is missing");
  mrope_section_ = need<std::vector<int64_t>>(rope, "mrope_section", where);
  check(setting(rope, "mrope_interleaved", defaults_.interleaved, where) == defaults_.interleaved, where,
        ": mrope_interleaved is not supported as it is");
  rope_ = RopeScaling(text, config, {shape.head_dim, defaults_.rope_theta, defaults_.max_positions}, where,
                      device);
  const int64_t pairs = std::accumulate(mrope_section_.begin(), mrope_section_.end(), int64_t{0});
  check(pairs == shape.head_dim / 2, where, ": mrope_section sums to ", pairs,
        ", expected half of the head size ", shape.head_dim);
  for (const int64_t section : mrope_section_) check(section >= 0, where, ": mrope_section holds ", section);
  check_full_attention(text, shape.layers, max_positions(), where);
  const json vision = need<json>(config, "vision_config", where);
  mrope_ = {config.value("image_token_id", int64_t{151655}), config.value("video_token_id", int64_t{151656}),
            vision.value("spatial_merge_size", int64_t{2}), vision.value("tokens_per_second", 2.0)};
}

void QwenVl::read_parts(const ModelSource& source, const json& vision) {
  constexpr const char* file = "preprocessor_config.json";
  if (const json preprocessor = source.settings(file); !preprocessor.is_null()) {
    const QwenImageOptions image =
        named(source.where(file), [&] { return QwenImageOptions::from_json(preprocessor, defaults_.image); });
    const auto same = [&](const char* key, int64_t here, int64_t encoder) {
      check(here == encoder, source.where(file), ": ", key, " is ", here, " but the encoder's is ", encoder);
    };
    same("patch_size", image.patch_size, vision.value("patch_size", int64_t{defaults_.image.patch_size}));
    same("merge_size", image.merge_size, mrope_.merge);
    same("temporal_patch_size", image.temporal_patch_size, vision.value("temporal_patch_size", int64_t{2}));
    image_options_ = image;
  }
  tokenizer_ = source.tokenizer();
}

const Tokenizer& QwenVl::tokenizer() const {
  check(tokenizer_ != nullptr, dir_.string(), ": no tokenizer.json and no vocab.json with merges.txt");
  return *tokenizer_;
}

Prompt QwenVl::prompt(const std::vector<Message>& messages, const std::vector<Image>& images,
                      const ImageBounds& bounds) const {
  check(images.empty() || image_options_, dir_.string(), no_preprocessor);
  check(defaults_.evaluated || !bounds.reference(),
        "image bounds: the published evaluation knows no model of this kind; leave out the reference "
        "preprocessing");
  QwenImageOptions options = image_options_.value_or(defaults_.image);
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

std::vector<int64_t> QwenVl::chat_ids(const std::vector<Message>& messages, bool add_generation_prompt,
                                      std::vector<int64_t>* question) const {
  return encode_chat(tokenizer(), messages, add_generation_prompt, chat_, question);
}

}  // namespace glimpse
