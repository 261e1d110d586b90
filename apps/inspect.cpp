#include <cmath>
#include <iomanip>
#include <iostream>
#include <map>

#include "flags.h"
#include "glimpse/engine/memory_need.h"
#include "glimpse/io/quantization.h"
#include "glimpse/models/config.h"
#include "glimpse/models/video_settings.h"
#include "glimpse/models/vision_shape.h"
#include "glimpse/models/vlm.h"

namespace glimpse::app {

namespace {

struct InspectFlags {
  EngineOptions engine;
  Fetching fetching;
  bool json = false;
};

// Of a whole CLIP, what is not its vision encoder.
bool is_text_tower(const std::string& name) {
  return name.starts_with("text_") || name == "visual_projection.weight" || name == "logit_scale";
}

// Parameters and dtypes of a checkpoint, by part.
nlohmann::json parts_of(const Weights& weights) {
  std::map<std::string, nlohmann::json> parts;
  for (const std::string& name : weights.names()) {
    const std::string part = name.starts_with("visual.")                                ? "vision encoder"
                             : is_text_tower(name)                                      ? "text tower"
                             : name.starts_with("model.embed")                          ? "embeddings"
                             : name.starts_with("lm_head")                              ? "output head"
                             : name.starts_with("attn_fuser.")                          ? "predictor"
                             : name.starts_with("le_") || name.starts_with("learnable") ? "glimpse token"
                                                                                        : "language model";
    nlohmann::json& entry = parts[part];
    if (entry.is_null())
      entry = {{"tensors", 0}, {"parameters", 0}, {"bytes", 0}, {"dtypes", nlohmann::json::object()}};
    entry["tensors"] = entry["tensors"].get<int64_t>() + 1;
    entry["parameters"] = entry["parameters"].get<int64_t>() + c10::multiply_integers(weights.shape(name));
    entry["bytes"] = entry["bytes"].get<int64_t>() + static_cast<int64_t>(weights.bytes(name));
    entry["dtypes"][weights.stored_as(name)] = true;
  }
  nlohmann::json list = nlohmann::json::array();
  for (auto& [name, entry] : parts) {
    std::string dtypes;
    for (const auto& [dtype, unused] : entry["dtypes"].items())
      dtypes += (dtypes.empty() ? "" : ", ") + dtype;
    entry["dtypes"] = dtypes;
    entry["part"] = name;
    list.push_back(entry);
  }
  return list;
}

void print_parts(const nlohmann::json& parts) {
  for (const auto& part : parts)
    std::cout << "  " << std::left << std::setw(16) << part["part"].get<std::string>() << std::right
              << std::setw(14) << part["parameters"].get<int64_t>() << " parameters in " << std::setw(4)
              << part["tensors"].get<int64_t>() << " tensors, " << std::fixed << std::setprecision(1)
              << part["bytes"].get<double>() / 1048576 << " MiB, " << part["dtypes"].get<std::string>()
              << "\n";
}

constexpr double kMib = 1 << 20, kGib = 1 << 30;

std::string pixels_of(int64_t side) {
  return concat(side, " x ", side, " pixels");
}

/// Visual tokens of a picture of a megapixel where the encoder sees it in views of one size; else 0.
int64_t fixed_tokens_of(const Vlm& model) {
  constexpr int side = 1024;
  if (!model.has_class_token()) return 0;
  const Image blank{side, side, std::vector<uint8_t>(size_t{3} * side * side)};
  try {
    return total_tokens(model.prompt({{"user", {{Part::Kind::image, {}}}}}, {blank}, {}).segments);
  } catch (const Error&) {
    return 0;  // a model that can be loaded without saying how it wants images prepared
  }
}

/// A minute of video as it is shown without further settings.
nlohmann::json minute_of_video(const MemoryNeed& need, const VideoOptions& options) {
  const VideoInfo info{60 * 24, 24, 1280, 720};
  const int64_t side = std::llround(std::sqrt(static_cast<double>(need.token_pixels())));
  const VideoSample sample = sample_video(info, options, static_cast<int>(side));
  const int64_t frame = sample.size.height / side * (sample.size.width / side);
  const int64_t tokens = std::ssize(sample.indices) / 2 * frame;  // two frames have their tokens in common
  return {{"frames", sample.indices.size()},
          {"width", info.width},
          {"height", info.height},
          {"visual_tokens", tokens},
          {"kv_bytes", tokens * need.kv_token}};
}

/// The most visual tokens that the checkpoint has a picture made into, where that depends on the picture.
int64_t most_tokens(const Vlm& model, const MemoryNeed& need) {
  const auto range = model.pixel_range({});
  return range ? range->most / need.token_pixels() : INT64_MAX;
}

/// What the model will need of this machine's memory, of whose images the largest.
nlohmann::json memory_of(const MemoryNeed& need, int64_t context, int64_t most = INT64_MAX,
                         int64_t fixed_tokens = 0) {
  const auto available = available_memory();
  nlohmann::json out = {{"weights_bytes", need.weights},
                        {"mapped_bytes", need.mapped},
                        {"loaded_bytes", need.loaded()},
                        {"kv_bytes_per_token", need.kv_token}};
  if (available) out["available_bytes"] = *available;
  if (need.vision.hidden == 0) return out;  // not loaded
  const auto side = [&](int64_t tokens) {
    return static_cast<int64_t>(std::sqrt(static_cast<double>(tokens * need.token_pixels())));
  };
  constexpr int64_t megapixel = 1024 * 1024;
  const int64_t tokens = fixed_tokens > 0 ? fixed_tokens : megapixel / need.token_pixels();
  out["image"] = {{"visual_tokens", tokens},
                  {"side_pixels", fixed_tokens > 0 ? 1024 : side(tokens)},
                  {"kv_bytes", tokens * need.kv_token},
                  {"bytes", need.image(tokens)}};
  if (!available) return out;
  const int64_t room = need.largest_image(*available - std::min(*available, need.loaded()));
  const int64_t largest = std::min({context, most, room});
  out["largest_image"] = {{"visual_tokens", largest},
                          {"limit", largest == most      ? "max_pixels"
                                    : largest == context ? "context"
                                                         : "memory"}};
  if (fixed_tokens == 0) out["largest_image"]["side_pixels"] = side(largest);
  return out;
}

void print_memory(const nlohmann::json& memory, const std::string& weights, int64_t context) {
  const auto in = [&](const nlohmann::json& bytes, double unit, int digits) {
    std::ostringstream text;
    text << std::fixed << std::setprecision(digits) << bytes.get<double>() / unit;
    return text.str();
  };
  const nlohmann::json& held = memory["weights_bytes"];
  std::cout << "memory            "
            << (held.get<double>() < kGib ? in(held, kMib, 1) + " MiB" : in(held, kGib, 2) + " GiB")
            << " of weights (--weights " << weights << "), " << in(memory["kv_bytes_per_token"], 1024, 1)
            << " KiB of KV cache per token\n";
  if (memory.contains("image")) {
    const auto& image = memory["image"];
    std::cout << "  an image        " << pixels_of(image["side_pixels"]) << ": " << image["visual_tokens"]
              << " visual tokens, " << in(image["kv_bytes"], kMib, 1) << " MiB of KV cache, "
              << in(image["bytes"], kMib, 0) << " MiB while it is read\n";
  }
  if (memory.contains("minute_of_video")) {
    const auto& video = memory["minute_of_video"];
    std::cout << "  a video         " << video["frames"] << " frames, a minute, of " << video["width"]
              << " x " << video["height"] << " pixels: " << video["visual_tokens"] << " visual tokens, "
              << in(video["kv_bytes"], kMib, 1) << " MiB of KV cache"
              << (video["visual_tokens"] > context ? " (more than the context holds; --max-frames)" : "")
              << "\n";
  }
  if (!memory.contains("available_bytes")) return;
  std::cout << "  here            " << in(memory["available_bytes"], kGib, 1) << " GiB available: ";
  const nlohmann::json largest = memory.value("largest_image", nlohmann::json{{"visual_tokens", 0}});
  if (largest["visual_tokens"] == 0)
    std::cout << "too little for it\n";
  else
    std::cout << "room for one image of " << largest["visual_tokens"] << " visual tokens"
              << (largest.contains("side_pixels") ? ", " + pixels_of(largest["side_pixels"]) : "")
              << (largest["limit"] == "context"      ? " (as many as the context holds)"
                  : largest["limit"] == "max_pixels" ? " (the checkpoint's max_pixels)"
                                                     : "")
              << "\n";
}

int run(InspectFlags& flags, Interrupt& interrupt) {
  flags.fetching.provide(flags.engine, interrupt);
  const auto source = model_source(flags.engine);
  auto need =
      memory_need(*source, load_options(flags.engine, source->config()), parse_kv_format(flags.engine.kv));
  // What cannot be loaded here still has its numbers.
  const auto available = available_memory();
  if (!flags.json && need && available && need->loaded() > *available)
    print_memory(memory_of(*need, INT64_MAX), flags.engine.weights, INT64_MAX);
  // Loading checks every tensor's name and shape.
  const auto engine = Engine::load(flags.engine);
  const DecoderConfig& c = engine->model().decoder().config();
  nlohmann::json out = {
      {"model", source->path().string()},
      {"model_type", source->config().value("model_type", "")},
      {"language_model",
       {{"layers", c.layers},
        {"hidden_size", c.hidden_size},
        {"heads", c.heads},
        {"kv_heads", c.kv_heads},
        {"head_dim", c.head_dim},
        {"intermediate_size", c.intermediate_size},
        {"vocab_size", c.vocab_size},
        {"tied_head", c.tied_head},
        {"context", engine->model().max_positions()}}},
      {"vision_encoder",
       {{"layers", engine->model().vision_depth()}, {"hidden_size", engine->model().vision_width()}}},
      {"parts", parts_of(open_weights(*source))}};
  if (need) need->vision = vision_shape(source->config(), source->path());
  if (need)
    out["memory"] = memory_of(*need, engine->model().max_positions(), most_tokens(engine->model(), *need),
                              fixed_tokens_of(engine->model()));
  if (need && engine->model().takes_videos())
    out["memory"]["minute_of_video"] = minute_of_video(*need, video_defaults(*source));
  const nlohmann::json config = source->config();
  const Quantization packing = Quantization::of(config, source->where("config.json"));
  if (packing.method != Quantization::Method::none) out["quantization"] = packing.text();
  if (const auto rope = rope_settings(text_config(config), config, ""); !rope.empty())
    out["rope_scaling"] = rope;
  const auto tower = engine->model().text_tower();
  if (tower) out["text_tower"] = {{"layers", tower->layers}, {"hidden_size", tower->hidden_size}};
  const GlimpseModules* modules = engine->modules();
  if (modules) {
    const auto folder = module_dirs(flags.engine).at(0).second;
    const GlimpseConfig& g = modules->config;
    const auto file = std::filesystem::exists(folder / "new_modules_gp.safetensors")
                          ? "new_modules_gp.safetensors"
                          : "new_modules_gp.pt";
    out["pruning_modules"] = {{"folder", folder.string()},
                              {"reduce_layer", g.reduce_layer},
                              {"selected_layers", g.selected_layers},
                              {"selected_visual_layers", g.selected_visual_layers},
                              {"attention", g.use_attention_logits ? "logits" : "log-softmax"},
                              {"settings", KeepRule(g.rule).fields().to_json()},
                              {"parts", parts_of(Weights::open(folder / file))}};
  }
  if (flags.json) {
    std::cout << out.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) << "\n";
    return 0;
  }
  const auto row = [](const char* name, const nlohmann::json& value) {
    std::cout << std::left << std::setw(18) << name
              << (value.is_string() ? value.get<std::string>() : value.dump()) << "\n";
  };
  row("model", out["model"]);
  row("type", out["model_type"]);
  row("language model",
      concat(c.layers, " layers, hidden ", c.hidden_size, ", ", c.heads, " heads (", c.kv_heads,
             " key/value) of ", c.head_dim, ", MLP ", c.intermediate_size, ", vocabulary ", c.vocab_size,
             c.tied_head ? ", tied head" : "", ", context ", engine->model().max_positions()));
  if (out.contains("rope_scaling")) row("rotary embedding", out["rope_scaling"]);
  if (out.contains("quantization"))
    row("quantised",
        concat(packing.text(), packing.method == Quantization::Method::fp8
                                   ? "; used as plain weights, or rounded by --weights"
                               : packing.is_packed() ? "; kept so on the CPU, or widened by --weights bf16"
                                                     : ""));
  row("vision encoder",
      concat(engine->model().vision_depth(), " layers, hidden ", engine->model().vision_width()));
  row("text tower", tower ? concat(tower->layers, " layers, hidden ", tower->hidden_size)
                          : "none (cdpruner compares with the words of the question)");
  print_parts(out["parts"]);
  if (need) print_memory(out["memory"], flags.engine.weights, engine->model().max_positions());
  if (!modules) {
    std::cout << "pruning modules   none (--new-modules)\n";
    return 0;
  }
  const auto& pruning = out["pruning_modules"];
  row("pruning modules", pruning["folder"]);
  row("  cut", concat("after layer ", modules->config.reduce_layer, " of 0..", c.layers - 1));
  row("  reads",
      concat(pruning["attention"].get<std::string>(), " of layers ", pruning["selected_layers"].dump(),
             ", encoder blocks ", pruning["selected_visual_layers"].dump()));
  row("  keeps", pruning["settings"]);
  print_parts(pruning["parts"]);
  return 0;
}

}  // namespace

std::function<int()> add_inspect(CLI::App& app, Interrupt& interrupt) {
  auto flags = std::make_shared<InspectFlags>();
  flags->fetching = add_model_flags(app, flags->engine);
  app.add_flag("--json", flags->json, "print one JSON object")->group("Output");
  return [flags, &interrupt] { return run(*flags, interrupt); };
}

}  // namespace glimpse::app
