#include "glimpse/models/llava.h"

#include <numeric>

#include "glimpse/models/config.h"

namespace glimpse {

using nlohmann::json;
namespace fs = std::filesystem;

namespace {

// The mark of an image in the original code; no token has it.
constexpr int64_t kImagePlace = -200;

bool is_converted(const json& config) {
  return config.contains("text_config");
}

// What a checkpoint may hold that is not used here: later encoder blocks, CLIP's text half, stored tables.
bool is_unused(std::string_view name) {
  for (const char* begin : {"visual.vision_model.encoder.layers.", "visual.vision_model.post_layernorm.",
                            "text_model.", "text_projection.", "visual_projection.", "logit_scale"})
    if (name.starts_with(begin)) return true;
  return name.ends_with(".position_ids") || name.ends_with("rotary_emb.inv_freq");
}

// The parts of a config in one form, whichever layout it has.
struct Settings {
  json text, vision;
  std::string where;
  int64_t state = -2;  // hidden state of the encoder that the projector takes
  ImagePlace place{kImagePlace, 0, 1};
  fs::path preprocessor_dir;
  bool pad = false;

  Settings(const fs::path& dir, const json& config) : where((dir / "config.json").string()) {
    if (is_converted(config))
      read_converted(dir, config);
    else
      read_original(dir, config);
    for (const char* key : {"attention_bias", "mlp_bias"})
      check(!text.value(key, false), where, ": ", key, " is not supported with this family");
    expect(text, "hidden_act", "silu");
  }

 private:
  void read_converted(const fs::path& dir, const json& config) {
    // The text config leaves out what equals the format's defaults.
    text = {{"hidden_size", 4096},       {"intermediate_size", 11008},      {"num_hidden_layers", 32},
            {"num_attention_heads", 32}, {"max_position_embeddings", 2048}, {"vocab_size", 32000}};
    text.update(need<json>(config, "text_config", where));
    const json& kind = member(text, "model_type");
    check(kind.is_null() || kind == "llama" || kind == "llava", where, ": text_config: model_type ",
          json_text(kind), " is not supported, only llama");
    vision = need<json>(config, "vision_config", where);
    state = config.value("vision_feature_layer", int64_t{-2});
    expect(config, "vision_feature_select_strategy", "default");
    expect(config, "projector_hidden_act", "gelu");
    const char* const key = config.contains("image_token_index") ? "image_token_index" : "image_token_id";
    place.token = place.stored = config.value(key, int64_t{32000});
    preprocessor_dir = dir;
  }

  void read_original(const fs::path& dir, const json& config) {
    text = config;
    preprocessor_dir = Llava::tower_dir(dir, config);
    vision = open_model_dir(preprocessor_dir)->config();
    if (vision.contains("vision_config")) vision = json(vision["vision_config"]);
    state = config.value("mm_vision_select_layer", int64_t{-2});
    expect(config, "mm_vision_select_feature", "patch");
    expect(config, "mm_projector_type", "mlp2x_gelu");
    for (const char* key : {"mm_use_im_start_end", "mm_use_im_patch_token"})
      check(!config.value(key, false), where, ": ", key, " is not supported");
    const json& ratio = member(config, "image_aspect_ratio");
    check(ratio.is_null() || ratio == "pad" || ratio == "square", where, ": image_aspect_ratio ",
          ratio.dump(), " is not supported, only pad and square");
    pad = ratio == "pad";
  }

  void expect(const json& object, const char* key, const char* only) const {
    const json& value = member(object, key);
    check(value.is_null() || value == only, where, ": ", key, " ", value.dump(), " is not supported, only ",
          only);
  }
};

}  // namespace

fs::path Llava::tower_dir(const fs::path& dir, const json& config) {
  const auto name = need<std::string>(config, "mm_vision_tower", (dir / "config.json").string());
  const fs::path own = fs::path(name).filename();
  std::error_code ignored;
  for (const fs::path& place : {dir / own, fs::absolute(dir).parent_path() / own})
    if (!own.empty() && fs::exists(place / "config.json", ignored)) return place;
  return resolve_model_dir(name);
}

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
      {"language_model.lm_head.", "lm_head."}};
  for (const auto& [from, to] : renames)
    if (name.starts_with(from)) return std::string(to) + std::string(name.substr(from.size()));
  return std::string(name);
}

Weights Llava::open_weights(const ModelSource& source, const json& config) {
  Weights weights = source.weights(canonical_name);
  if (!is_converted(config) && !weights.contains("visual.vision_model.embeddings.class_embedding"))
    weights.include(Weights::open(tower_dir(source.path(), config), canonical_name));
  return weights;
}

VisionShape Llava::vision_shape(const json& config, const fs::path& dir) {
  const bool apart = config.contains("mm_vision_tower");
  const json tower = apart ? open_model_dir(tower_dir(dir, config))->config() : json();
  const json& c =
      apart && !tower.contains("vision_config") ? tower : (apart ? tower : config).at("vision_config");
  const auto number = [&](const char* key) { return c.at(key).get<int64_t>(); };
  const int64_t out = text_config(config).value("hidden_size", int64_t{4096});
  VisionShape shape;
  shape.depth = number("num_hidden_layers") + 1 +
                config.value(apart ? "mm_vision_select_layer" : "vision_feature_layer", int64_t{-2});
  shape.hidden = number("hidden_size");
  shape.heads = number("num_attention_heads");
  shape.intermediate = number("intermediate_size");
  shape.patch = number("patch_size");
  shape.patch_values = 3 * shape.patch * shape.patch;
  shape.full_blocks.resize(shape.depth);
  std::iota(shape.full_blocks.begin(), shape.full_blocks.end(), int64_t{0});
  shape.mlp_matrices = 2;
  shape.extra_tokens = 1;
  shape.projector = static_cast<double>(out * (shape.hidden + out));
  return shape;
}

void Llava::write_parts(const ModelSource& source, const fs::path& dir) {
  const json config = source.config();
  if (!config.contains("mm_vision_tower")) return;
  const fs::path tower = tower_dir(source.path(), config);
  const fs::path own = dir / fs::path(config["mm_vision_tower"].get<std::string>()).filename();
  if (fs::create_directory(own)) open_model_dir(tower)->write_companions(own);
}

std::unique_ptr<Vlm> Llava::load(const ModelSource& source, const json& config, const LoadOptions& load) {
  const Settings settings(source.path(), config);
  auto model = std::make_unique<Llava>();
  model->dir_ = source.path();
  model->place_ = settings.place;
  DecoderConfig shape = decoder_config(settings.text, config, settings.where);
  model->rope_ = RopeScaling(settings.text, config, {shape.head_dim, 1e4, 2048}, settings.where, load.device);
  check_full_attention(settings.text, shape.layers, model->max_positions(), settings.where);

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
  model->decoder_ = Decoder::load(shape, weights, "model.", "lm_head", options, load.weights);
  weights.expect_all_taken([&](std::string_view name) {
    return is_unused(name) || (shape.tied_head && name == "lm_head.weight");
  });

  const auto beside = open_model_dir(settings.preprocessor_dir);
  constexpr const char* file = "preprocessor_config.json";
  if (const json preprocessor = beside->settings(file); !preprocessor.is_null()) {
    ClipImageOptions image =
        named(beside->where(file), [&] { return ClipImageOptions::from_json(preprocessor); });
    check(image.crop_size == model->visual_.image_size(), beside->where(file), ": crop_size is ",
          image.crop_size, " but the encoder takes ", model->visual_.image_size());
    image.pad = image.pad || settings.pad;
    model->image_options_ = image;
  }

  model->tokenizer_ = source.tokenizer();
  if (is_converted(config))
    model->format_ = std::make_unique<LlavaHfChat>();
  else
    model->format_ = std::make_unique<VicunaChat>(kImagePlace);
  return model;
}

// In the encoder's own checkpoint, where that is a whole CLIP, or in the one that the options name.
void Llava::find_text_tower(const ModelSource& source, const json& config, const LoadOptions& load) {
  const bool own = load.clip.empty();
  if (own && is_converted(config)) return;  // this layout has the vision encoder alone
  const fs::path dir = own ? tower_dir(source.path(), config) : load.clip;
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

Prompt Llava::prompt(const std::vector<Message>& messages, const std::vector<Image>& images,
                     const ImageBounds& bounds) const {
  check(!bounds.min_pixels && !bounds.max_pixels && !bounds.reference(),
        "image bounds: this model sees every image at ", visual_.image_size(), " x ", visual_.image_size(),
        " pixels; leave out min-pixels, max-pixels and the reference preprocessing");
  check(images.empty() || image_options_, dir_.string(), no_preprocessor);
  std::vector<Patches> patches;
  patches.reserve(images.size());
  for (const Image& image : images) patches.push_back(clip_patches(image, *image_options_, visual_.patch()));
  std::vector<int64_t> question;
  const std::vector<int64_t> ids = chat_ids(messages, true, &question);
  Prompt out = prompt(ids, std::move(patches));
  set_question(out, ids, question, place_.token);
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
  for (const Patches& image : patches)
    check(int64_t{image.grid.t} * image.grid.h * image.grid.w == visual_.tokens(),
          "prompt: an image has a grid of ", image.grid.h, " x ", image.grid.w, ", expected ",
          visual_.tokens(), " patches");
  Prompt out = widen(ids, std::move(patches), place_, decoder_.config().vocab_size, max_positions());
  out.next_position = static_cast<int64_t>(out.ids.size());
  out.position_ids = at::arange(out.next_position, at::kLong).unsqueeze(0);
  return out;
}

// A block of all pictures per step; none sees another.
class Llava::Pictures : public Encoding {
 public:
  Pictures(const Llava& model, const std::vector<Patches>& patches, VisionTaps taps)
      : model_(model), taps_(std::move(taps)) {
    for (const Patches& each : patches) passes_.emplace_back(model.visual_, each.pixel_values, taps_);
  }
  int64_t steps() const override { return model_.visual_.last_state() - passes_[0].blocks_run(); }
  void step() override {
    for (ClipVit::Pass& pass : passes_) pass.step();
  }
  std::optional<int64_t> blocks_run() const override { return passes_[0].blocks_run(); }
  const VisionOutput& recorded() const override { return recorded_ = joined(outputs(), class_tokens()); }
  void keep(const std::vector<int64_t>& tokens) override {
    auto next = tokens.begin();
    for (int64_t picture = 0; picture < std::ssize(passes_); ++picture) {
      std::vector<int64_t> own;
      const int64_t first = picture * model_.visual_.tokens();
      for (; next != tokens.end() && *next < first + model_.visual_.tokens(); ++next)
        own.push_back(*next - first);
      passes_[picture].keep(own);
    }
  }
  VisionOutput finish() override {
    std::vector<VisionOutput> parts = outputs();
    for (size_t i = 0; i < parts.size(); ++i) {
      parts[i].embeds = passes_[i].state();
      if (taps_.shared) parts[i].shared = model_.clip().image(parts[i].embeds);
    }
    return joined(parts, class_tokens());
  }

 private:
  int64_t class_tokens() const { return taps_.class_tokens ? 1 : 0; }
  std::vector<VisionOutput> outputs() const {
    std::vector<VisionOutput> parts;
    for (const ClipVit::Pass& pass : passes_) {
      VisionOutput& part = parts.emplace_back();
      part.states = pass.states();
      part.attention = pass.attention();
      part.windows.resize(model_.visual_.tokens() + class_tokens());  // one
    }
    return parts;
  }

  const Llava& model_;
  const VisionTaps taps_;
  std::vector<ClipVit::Pass> passes_;
  mutable VisionOutput recorded_;  // made when it is asked for
};

std::unique_ptr<Encoding> Llava::encoding(const std::vector<Patches>& patches, const VisionTaps& taps) const {
  return std::make_unique<Pictures>(*this, patches, taps);
}

at::Tensor Llava::project(const at::Tensor& embeds) const {
  return projector_2_(at::gelu(projector_0_(embeds)));
}

Rope Llava::rope(const at::Tensor& position_ids) const {
  return rope_.tables(position_ids.flatten(1)[0].to(at::kFloat).unsqueeze(1) *
                      rope_.frequencies(position_ids));
}

}  // namespace glimpse
