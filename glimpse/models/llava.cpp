#include "glimpse/models/llava.h"

#include <numeric>

#include "glimpse/models/clip_tiles.h"
#include "glimpse/models/config.h"
#include "glimpse/models/llava_next.h"
#include "glimpse/models/llava_settings.h"

namespace glimpse {

using nlohmann::json;
namespace fs = std::filesystem;

namespace {

// What a checkpoint may hold that is not used here: later encoder blocks, CLIP's text half, stored tables.
bool is_unused(std::string_view name) {
  for (const char* begin : {"visual.vision_model.encoder.layers.", "visual.vision_model.post_layernorm.",
                            "text_model.", "text_projection.", "visual_projection.", "logit_scale"})
    if (name.starts_with(begin)) return true;
  return name.ends_with(".position_ids") || name.ends_with("rotary_emb.inv_freq");
}

}  // namespace

std::string Llava::canonical_name(std::string_view name) {
  // Of two names where one begins with the other the longer comes first.
  constexpr std::pair<std::string_view, std::string_view> renames[] = {
      {"model.mm_projector.", "visual.projector."},
      {"model.multi_modal_projector.linear_1.", "visual.projector.0."},
      {"model.multi_modal_projector.linear_2.", "visual.projector.2."},
      {"multi_modal_projector.linear_1.", "visual.projector.0."},
      {"multi_modal_projector.linear_2.", "visual.projector.2."},
      {"model.vision_tower.vision_tower.", "visual."},
      {"model.vision_tower.", "visual."},
      {"vision_tower.", "visual."},
      {"vision_model.", "visual.vision_model."},
      {"model.language_model.", "model."},
      {"language_model.model.", "model."},
      {"language_model.lm_head.", "lm_head."},
      {"model.image_newline", "visual.image_newline"},
      {"image_newline", "visual.image_newline"}};
  for (const auto& [from, to] : renames)
    if (name.starts_with(from)) {
      const std::string rest(name.substr(from.size()));
      // transformers 5 names the modules of a tower without their common one.
      const bool bare =
          to == "visual." && !rest.starts_with("vision_model.") && from.ends_with("vision_tower.");
      return std::string(to) + (bare ? "vision_model." : "") + rest;
    }
  return std::string(name);
}

Weights Llava::open_weights(const ModelSource& source, const json& config) {
  Weights weights = source.weights(canonical_name);
  if (!config.contains("vision_config") &&
      !weights.contains("visual.vision_model.embeddings.class_embedding"))
    weights.include(Weights::open(LlavaSettings::tower_dir(source.path(), config), canonical_name));
  return weights;
}

VisionShape Llava::vision_shape(const json& config, const fs::path& dir) {
  const bool apart = config.contains("mm_vision_tower") && !config.contains("vision_config");
  const json tower = apart ? open_model_dir(LlavaSettings::tower_dir(dir, config))->config() : json();
  const json& c =
      apart && !tower.contains("vision_config") ? tower : (apart ? tower : config).at("vision_config");
  const auto number = [&](const char* key) { return c.at(key).get<int64_t>(); };
  const int64_t out = text_config(config).value("hidden_size", int64_t{4096});
  VisionShape shape;
  shape.depth =
      number("num_hidden_layers") + 1 +
      config.value(LlavaSettings::is_converted(config) ? "vision_feature_layer" : "mm_vision_select_layer",
                   int64_t{-2});
  shape.hidden = number("hidden_size");
  shape.heads = number("num_attention_heads");
  shape.intermediate = number("intermediate_size");
  shape.patch = number("patch_size");
  shape.patch_values = 3 * shape.patch * shape.patch;
  shape.full_blocks.resize(shape.depth);
  std::iota(shape.full_blocks.begin(), shape.full_blocks.end(), int64_t{0});
  shape.mlp_matrices = 2;
  shape.extra_tokens = 1;
  if (LlavaSettings::in_tiles(config)) shape.tile = number("image_size") / shape.patch;
  shape.projector = static_cast<double>(out * (shape.hidden + out));
  return shape;
}

void Llava::write_parts(const ModelSource& source, const fs::path& dir) {
  const json config = source.config();
  if (!config.contains("mm_vision_tower")) return;
  const fs::path tower = LlavaSettings::tower_dir(source.path(), config);
  const fs::path own = dir / fs::path(config["mm_vision_tower"].get<std::string>()).filename();
  if (fs::create_directory(own)) open_model_dir(tower)->write_companions(own);
}

std::unique_ptr<Vlm> Llava::load(const ModelSource& source, const json& config, const LoadOptions& load) {
  LlavaSettings settings(source.path(), config);
  auto model = settings.resolutions.empty() ? std::make_unique<Llava>() : std::make_unique<LlavaNext>();
  model->dir_ = source.path();
  model->place_ = settings.place;
  DecoderConfig shape = decoder_config(settings.text, config, settings.where);
  model->rope_ = RopeScaling(settings.text, config, {shape.head_dim, 1e4, 2048}, settings.where, load.device);
  shape.windows = sliding_windows(settings.text, shape.layers, model->max_positions(), settings.where);

  Weights weights = open_weights(source, config);
  shape.tied_head = merge_adapters(weights, load.adapters, shape.tied_head);
  const at::TensorOptions options = at::TensorOptions(load.dtype).device(load.device);
  model->visual_ = ClipVit::load(settings.vision, settings.state, weights, options, load.weights);
  model->find_text_tower(source, config, load);
  const auto linear = [&](const std::string& name, int64_t out, int64_t in) {
    return take_linear(weights, name, out, in, true, options, load.weights);
  };
  model->projector_0_ = linear("visual.projector.0", shape.hidden_size, model->visual_.hidden_size());
  model->projector_2_ = linear("visual.projector.2", shape.hidden_size, shape.hidden_size);
  model->find_parts(weights, settings, shape.hidden_size, options);
  model->decoder_ = Decoder::load(shape, weights, "model.", "lm_head", options, load.weights);
  weights.expect_all_taken([&](std::string_view name) {
    return is_unused(name) || (shape.tied_head && name == "lm_head.weight");
  });

  const auto apart =
      settings.preprocessor_dir == source.path() ? nullptr : open_model_dir(settings.preprocessor_dir);
  const ModelSource* const beside = apart ? apart.get() : &source;
  constexpr const char* file = "preprocessor_config.json";
  if (const json preprocessor = beside->settings(file); !preprocessor.is_null()) {
    ClipImageOptions image =
        named(beside->where(file), [&] { return ClipImageOptions::from_json(preprocessor); });
    check(image.crop_size == model->visual_.image_size(), beside->where(file), ": crop_size is ",
          image.crop_size, " but the encoder takes ", model->visual_.image_size());
    image.pad = settings.resolutions.empty() && (image.pad || settings.pad);
    model->image_options_ = image;
  }

  model->tokenizer_ = source.tokenizer();
  check(!model->tokenizer_ || !model->tokenizer_->token_id("<|im_start|>"), source.where("tokenizer.json"),
        ": has <|im_start|>, so the model is asked in ChatML, as llava-v1.6-34b is; that is not supported, "
        "only Vicuna's and Mistral's formats are");
  model->format_ = std::move(settings.format);
  return model;
}

// In the encoder's own checkpoint, where that is a whole CLIP, or in the one that the options name.
void Llava::find_text_tower(const ModelSource& source, const json& config, const LoadOptions& load) {
  const bool own = load.clip.empty();
  if (own && config.contains("vision_config")) return;  // such layouts have the vision encoder alone
  const fs::path dir = own ? LlavaSettings::tower_dir(source.path(), config) : load.clip;
  const auto open = [own, dir, model = dir_, config] {
    return own ? open_weights(*open_model_dir(model), config) : Weights::open(dir, canonical_name);
  };
  if (!ClipText::is_in(open())) {
    check(own, "--clip ", dir.string(), " holds no text tower; name a whole CLIP");
    return;
  }
  const json clip = open_model_dir(dir)->config();
  const ClipShape shape = ClipText::shape_of(clip);
  text_tower_ = {shape.layers, shape.hidden, shape.intermediate, ClipText::width_of(clip)};
  load_clip_ = [=, width = visual_.hidden_size(),
                options = at::TensorOptions(load.dtype).device(load.device)] {
    return ClipText::load(clip, width, open(), Tokenizer::load(dir), options);
  };
}

const ClipText& Llava::clip() const {
  check(text_tower_.has_value(), dir_.string(), ": its vision encoder comes without CLIP's text tower");
  std::call_once(clip_is_loaded_, [&] { clip_ = load_clip_(); });
  return *clip_;
}

TextOutput Llava::encode_text(const std::string& text) const {
  const auto pieces = clip().pieces(text);
  TextOutput out{clip().text(pieces), {}};
  for (const auto& piece : pieces) out.rows.push_back(clip().rows_read(piece));
  return out;
}

const Tokenizer& Llava::tokenizer() const {
  check(tokenizer_ != nullptr, dir_.string(), ": no tokenizer.json and no tokenizer.model");
  return *tokenizer_;
}

std::optional<PixelRange> Llava::pixel_range(const ImageBounds& bounds) const {
  check(!bounds.min_pixels && !bounds.max_pixels && !bounds.reference(),
        "image bounds: this model's encoder sees ", visual_.image_size(), " x ", visual_.image_size(),
        " pixels at a time; leave out min-pixels, max-pixels and the reference preprocessing");
  return std::nullopt;
}

Prompt Llava::prompt(const std::vector<Message>& messages, const std::vector<Medium>& media,
                     const ImageBounds& bounds) const {
  pixel_range(bounds);
  check(media.empty() || image_options_, dir_.string(), no_preprocessor);
  std::vector<Patches> patches;
  patches.reserve(media.size());
  for (const Medium& medium : media) {
    check(!is_video(medium), dir_.string(), ": this model knows no videos; give it pictures of one");
    patches.push_back(patches_of(std::get<Image>(medium)));
  }
  std::vector<int64_t> question;
  const std::vector<int64_t> ids = chat_ids(messages, true, &question);
  Prompt out = prompt(ids, std::move(patches));
  set_question(out, ids, question, {&place_.token, 1});
  out.question = question_of(messages);
  return out;
}

std::vector<int64_t> Llava::chat_ids(const std::vector<Message>& messages, bool add_generation_prompt,
                                     std::vector<int64_t>* question) const {
  std::vector<int64_t> ids = encode_chat(tokenizer(), messages, add_generation_prompt, *format_, question);
  ids.insert(ids.begin(), format_->special_id(tokenizer(), "<s>"));
  if (question)
    for (int64_t& place : *question) ++place;
  return ids;
}

Prompt Llava::prompt(const std::vector<int64_t>& ids, std::vector<Patches> patches) const {
  std::vector<std::vector<TokenGrid>> grids;
  for (const Patches& image : patches) {
    const auto [t, h, w] = image.grid;
    check(int64_t{h} * w == visual_.tokens() && t > 0, "prompt: an image has a grid of ", h, " x ", w,
          ", expected ", visual_.tokens(), " patches");
    check(image.pixel_values.dim() == 2 && image.pixel_values.size(0) == int64_t{t} * h * w,
          "prompt: an image with a grid of ", t, " x ", h, " x ", w, " has pixel values of the shape ",
          image.pixel_values.sizes());
    grids.push_back(grids_of(image));
  }
  Prompt out = widen(ids, std::move(patches), grids, place_, decoder_.config().vocab_size, max_positions());
  out.next_position = static_cast<int64_t>(out.ids.size());
  out.position_ids = at::arange(out.next_position, at::kLong).unsqueeze(0);
  return out;
}

Patches Llava::patches_of(const Image& image) const {
  return clip_patches(image, *image_options_, visual_.patch());
}

std::vector<TokenGrid> Llava::grids_of(const Patches& image) const {
  check(image.grid.t == 1, "prompt: an image has ", image.grid.t, " tiles, expected 1");
  return {{image.grid.h, image.grid.w, image.area}};
}

std::vector<TilePart> Llava::parts_of(const Patches&) const {
  return {{0, 1, {}, {}}};
}

std::unique_ptr<Encoding> Llava::encoding(const std::vector<Patches>& patches, const VisionTaps& taps) const {
  std::vector<at::Tensor> tiles;
  std::vector<TilePart> parts;
  for (const Patches& image : patches) {
    for (TilePart& part : parts_of(image)) {
      part.first += std::ssize(tiles);
      parts.push_back(std::move(part));
    }
    for (const at::Tensor& tile : image.pixel_values.split(visual_.tokens())) tiles.push_back(tile);
  }
  return std::make_unique<ClipTiles>(visual_, tiles, std::move(parts), taps,
                                     [this](const at::Tensor& rows) { return clip().image(rows); });
}

at::Tensor Llava::project(const at::Tensor& embeds) const {
  return projector_2_(at::gelu(projector_0_(embeds)));
}

Rope Llava::rope(const at::Tensor& position_ids) const {
  return rope_.tables(position_ids.flatten(1)[0].to(at::kFloat).unsqueeze(1) *
                      rope_.frequencies(position_ids));
}

}  // namespace glimpse
