// What damaged model folders are answered with.
#include <cmath>
#include <tuple>

#include "glimpse/base/check.h"
#include "glimpse/image/qwen_image.h"
#include "glimpse/io/safetensors.h"
#include "glimpse/models/gguf_parts.h"
#include "io/gguf_bytes.h"
#include "io/scratch.h"
#include "models/damaged.h"

using namespace glimpse;
using nlohmann::json;
using test::BrokenModel;
using test::contains;
using test::error_of;
using test::with_config;
using Tensors = std::map<std::string, at::Tensor>;

namespace {

std::string with_weights(const std::function<void(Tensors&)>& edit) {
  const BrokenModel model;
  Tensors tensors = load_safetensors(model.dir() / "model.safetensors").tensors;
  edit(tensors);
  std::filesystem::remove(model.dir() / "model.safetensors");
  save_safetensors(model.dir() / "model.safetensors", tensors);
  return error_of(model);
}

}  // namespace

TEST_CASE("an undamaged copy loads") {
  CHECK(with_config([](json&) {}) == "no error");
  CHECK(with_weights([](Tensors&) {}) == "no error");
}

TEST_CASE("config.json: which model, which fields") {
  contains(with_config([](json& c) { c["model_type"] = "gpt2"; }),
           {"config.json", "model_type 'gpt2' is not supported", "qwen2_5_vl"});
  contains(with_config([](json& c) { c.erase("model_type"); }), {"model_type ''"});
  contains(with_config([](json& c) { c["model_type"] = 7; }), {"config.json"});
  contains(with_config([](json& c) { c = json::array(); }), {"config.json", "expected a JSON object"});
  for (const char* key : {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                          "vocab_size", "vision_config", "rope_scaling"}) {
    contains(with_config([&](json& c) { c.erase(key); }), {"config.json", key, "is missing"});
    contains(with_config([&](json& c) { c[key] = nullptr; }), {"config.json", key, "is missing"});
    contains(with_config([&](json& c) { c[key] = "many"; }), {"config.json"});
  }
  contains(with_config([](json& c) { c["text_config"] = 5; }), {"config.json"});
  contains(with_config([](json& c) { c["rope_scaling"].erase("mrope_section"); }),
           {"mrope_section is missing"});
  contains(with_config([](json& c) {
             c["rope_scaling"]["mrope_section"] = {8, 12, 13};
           }),
           {"mrope_section sums to 33", "half of the head size 64"});
  contains(with_config([](json& c) {
             c["head_dim"] = 1;
             c["rope_scaling"]["mrope_section"] = {0, 0, 0};
           }),
           {"head size 1 is odd"});
}

TEST_CASE("null in a settings file means not set") {
  // The 4 heads of the built-in model share 2 of keys; null stands for one each, which its weights are not.
  contains(with_config([](json& c) { c["num_key_value_heads"] = nullptr; }), {"k_proj"});
  for (const char* key : {"head_dim", "rms_norm_eps", "max_position_embeddings", "use_sliding_window",
                          "text_config", "rope_parameters", "torch_dtype"})
    CHECK(with_config([&](json& c) { c[key] = nullptr; }) == "no error");
  const BrokenModel model;
  std::ofstream(model.dir() / "generation_config.json")
      << R"({"do_sample": true, "temperature": null, "top_p": null, "top_k": null, "repetition_penalty": null,
             "eos_token_id": null})";
  model.edit_json("config.json", [](json& c) { c["eos_token_id"] = 3; });
  const auto engine = Engine::load({.model = model.dir(), .dtype = "fp32"});
  CHECK(engine->stop_ids() == std::vector<int64_t>{3});
  CHECK(engine->default_sampling().top_k == 50);
  CHECK(engine->default_sampling().temperature == 1);
  std::ofstream(model.dir() / "generation_config.json") << R"({"do_sample": true, "top_p": "0.9"})";
  CHECK_THROWS_WITH_AS(Engine::load({.model = model.dir(), .dtype = "fp32"}),
                       doctest::Contains("generation_config.json: top_p has an unexpected value \"0.9\""),
                       Error);
}

TEST_CASE("what says how images are prepared") {
  const Image image{280, 280, std::vector<uint8_t>(3 * 280 * 280, 90)};
  const auto tokens = [&](const BrokenModel& model) {
    const auto loaded = load_vlm(model.dir(), {.dtype = at::kFloat});
    return loaded->prompt({test::user("x", 1)}, {image}, {}).visual_rows.size();
  };
  // As transformers 5 writes it; it wins over the older file.
  const auto nested = [](const BrokenModel& model, const json& change) {
    json own = read_json(test::tiny_dir() / "model/preprocessor_config.json");
    own["size"] = {{"shortest_edge", own["min_pixels"]}, {"longest_edge", 28 * 28 * 30}};
    own.erase("min_pixels");
    own.erase("max_pixels");
    if (!change.is_null()) own.update(change);
    std::ofstream(model.dir() / "processor_config.json") << json{{"image_processor", own}}.dump();
  };
  const BrokenModel both;
  CHECK(tokens(both) == 100);
  nested(both, {});
  CHECK(tokens(both) <= 30);
  const BrokenModel newer;
  nested(newer, {{"image_mean", nullptr}});
  std::filesystem::remove(newer.dir() / "preprocessor_config.json");
  CHECK(tokens(newer) <= 30);
  nested(newer, {{"patch_size", 16}});
  contains(error_of(newer), {"/processor_config.json: patch_size is 16"});
  nested(newer, {{"resample", 2}});
  contains(error_of(newer), {"/processor_config.json: resample 2 is not supported"});

  // Without either nothing is guessed. Questions without an image go on.
  std::ofstream(newer.dir() / "processor_config.json") << R"({"processor_class": "Qwen2_5_VLProcessor"})";
  CHECK_THROWS_WITH_AS(tokens(newer),
                       doctest::Contains("neither preprocessor_config.json nor processor_config"), Error);
  const auto loaded = load_vlm(newer.dir(), {.dtype = at::kFloat});
  CHECK_FALSE(loaded->prompt({test::user("x")}, {}, {}).ids.empty());
}

TEST_CASE("the published evaluation's preprocessing is asked for by name") {
  const Vlm& model = test::tiny_engine().model();
  const Image image{301, 217, std::vector<uint8_t>(3 * 301 * 217, 90)};
  const auto patches = [&](const char* how) {
    ImageBounds bounds;
    bounds.fields().set("preprocessing", how, "test");
    return model.prompt({test::user("x", 1)}, {image}, bounds).patches.at(0);
  };
  QwenImageOptions reference =
      QwenImageOptions::from_json(read_json(test::tiny_dir() / "model/preprocessor_config.json"));
  CHECK(at::equal(patches("own").pixel_values, qwen_patches(image, reference).pixel_values));
  reference.reference = true;
  CHECK(at::equal(patches("reference").pixel_values, qwen_patches(image, reference).pixel_values));
  CHECK_THROWS_WITH_AS(patches("other"), doctest::Contains("expected own or reference"), Error);
  ImageBounds bounds;
  CHECK(bounds.decode_options().apply_orientation);
  bounds.preprocessing = "reference";
  CHECK_FALSE(bounds.decode_options().apply_orientation);
}

TEST_CASE("GGUF files are told by their first bytes") {
  const test::Scratch scratch;
  const auto file = [&](const std::string& name, const std::string& architecture) {
    test::GgufBytes bytes;
    bytes.key("general.architecture", 8, test::text_bytes(architecture));
    return scratch.write(name, bytes.file()).string();
  };
  const auto error = [](const std::string& model, const std::string& mmproj) {
    return test::error_of([&] { open_model(model, mmproj); });
  };
  const std::string mmproj = file("mmproj-model.gguf", "clip");
  contains(error(mmproj, ""), {"mmproj-model.gguf holds a vision encoder: name it with --mmproj"});
  for (const char* name : {"M.GGUF", "sha256-blob"}) {
    const std::string model = file(name, "qwen2vl");
    for (const std::string& given : {mmproj, std::string()})  // the one beside it
      contains(error(model, given), {"mmproj-model.gguf: projector type ''"});
  }
  contains(error(file("other", "mamba"), mmproj), {"architecture 'mamba' is not supported"});
  contains(error(scratch.write("text.gguf", "words"), mmproj), {"text.gguf is not a GGUF file"});
  contains(error(scratch.write("text", "words"), mmproj),
           {"--mmproj belongs to a --model that is a GGUF file"});
  const std::string pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7516344472\n";
  contains(error(scratch.write("model.gguf", pointer), mmproj), {"model.gguf: is a Git LFS pointer"});
}

TEST_CASE("a GGUF file whose rotary embedding is scaled") {
  const test::Scratch scratch;
  using Key = std::tuple<std::string, uint32_t, std::string>;  // behind "qwen2vl.rope.", type, value
  const auto text = [](const char* name, const char* value) { return Key{name, 8, test::text_bytes(value)}; };
  const auto number = [](const char* name, float value) { return Key{name, 6, test::bytes_of(value)}; };
  const auto file = [&](const std::vector<Key>& keys, const std::string& tensor = "") {
    test::GgufBytes bytes;
    bytes.key("general.architecture", 8, test::text_bytes("qwen2vl"));
    for (const auto& [name, kind, value] : keys) bytes.key("qwen2vl.rope." + name, kind, value);
    if (!tensor.empty()) bytes.tensor(tensor, {1}, 0, 0);
    bytes.data.resize(32);
    return scratch.write("model.gguf", bytes.file());
  };
  const auto read = [&](const std::vector<Key>& keys) {
    return rope_scaling_of(Gguf::open(file(keys)), "qwen2vl");
  };
  const Key yarn = text("scaling.type", "yarn"), linear = text("scaling.type", "linear"),
            four = number("scaling.factor", 4),
            trained{"scaling.original_context_length", 4, test::bytes_of(512u)};
  CHECK(read({}) == json::object());
  CHECK(read({text("scaling.type", "none"), four}) == json::object());
  CHECK(read({linear}) == json::object());
  for (const float none : {0.f, 1.f})
    for (const char* name : {"scaling.factor", "scale_linear"})
      CHECK(read({number(name, none)}) == json::object());
  const json slower = {{"type", "linear"}, {"factor", 4.0}};
  CHECK(read({linear, four}) == slower);
  CHECK(read({four}) == slower);
  CHECK(read({number("scale_linear", 4), number("scaling.attn_factor", 1)}) == slower);
  CHECK(read({yarn, four, trained}) ==
        json{{"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 512}});
  CHECK(read({yarn, four, number("scaling.yarn_ext_factor", 1), number("scaling.yarn_attn_factor", 1.25),
              number("scaling.yarn_beta_fast", 24), number("scaling.yarn_beta_slow", 2)}) ==
        json{{"type", "yarn"},
             {"factor", 4.0},
             {"attention_factor", 1.25},
             {"beta_fast", 24.0},
             {"beta_slow", 2.0}});

  // In a model that is opened, which says it before anything else that is missing there.
  test::GgufBytes vision;
  vision.key("general.architecture", 8, test::text_bytes("clip"));
  vision.key("clip.projector_type", 8, test::text_bytes("qwen2.5vl_merger"));
  const std::string mmproj = scratch.write("mmproj.gguf", vision.file());
  const auto refused = [&](const std::vector<Key>& keys, const char* says, const std::string& tensor = "") {
    contains(test::error_of([&] { open_model(file(keys, tensor), mmproj); }), {"model.gguf", says});
  };
  for (const char* type : {"longrope", "dynamic", "YARN", ""})
    refused({text("scaling.type", type), four}, "qwen2vl.rope.scaling.type \"");
  refused({Key{"scaling.type", 4, test::bytes_of(1u)}}, "qwen2vl.rope.scaling.type 1");
  for (const Key& type : {linear, yarn, text("scaling.type", "none")})
    for (const float factor : {0.f, 1.2f})
      refused({type, four, number("scaling.attn_factor", factor)}, "qwen2vl.rope.scaling.attn_factor is");
  refused({yarn}, "qwen2vl.rope.scaling.factor is");
  for (const float factor : {0.5f, -4.f, std::nanf(""), HUGE_VALF})
    for (const Key& type : {linear, yarn})
      refused({type, number("scaling.factor", factor)}, "qwen2vl.rope.scaling.factor is");
  refused({number("scale_linear", 0.5)}, "qwen2vl.rope.scale_linear is 0.5");
  refused({yarn, text("scaling.factor", "4")}, "qwen2vl.rope.scaling.factor has an unexpected value");
  refused({yarn, four, number("scaling.yarn_ext_factor", 0)}, "qwen2vl.rope.scaling.yarn_ext_factor is 0");
  for (const char* name : {"scaling.yarn_log_multiplier", "scaling.alpha"})
    refused({yarn, four, number(name, 0.1)}, name);
  refused({linear, four, number("scaling.yarn_beta_fast", 24)}, "qwen2vl.rope.scaling.yarn_beta_fast");
  for (const char* name : {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"})
    refused({}, name, name);
}

TEST_CASE("config.json: numbers that cannot be") {
  for (const char* key : {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                          "num_key_value_heads", "vocab_size", "head_dim"})
    for (const int64_t value : {int64_t{0}, int64_t{-1}, int64_t{7}, int64_t{1} << 62}) {
      CAPTURE(key);
      CAPTURE(value);
      CHECK(with_config([&](json& c) { c[key] = value; }) != "no error");
    }
  for (const char* key : {"hidden_size", "num_heads", "depth", "patch_size", "spatial_merge_size",
                          "window_size", "temporal_patch_size", "intermediate_size", "out_hidden_size"})
    for (const int64_t value : {int64_t{0}, int64_t{-2}, int64_t{1} << 62}) {
      CAPTURE(key);
      CAPTURE(value);
      if (std::string(key) == "window_size" && value > 0) continue;  // one window is fine
      CHECK(with_config([&](json& c) { c["vision_config"][key] = value; }) != "no error");
    }
  CHECK(with_config([](json& c) { c["rope_scaling"]["mrope_section"] = {40, -20, 12}; }) != "no error");
  CHECK(with_config([](json& c) { c["rope_scaling"]["mrope_section"] = {8, 12, "12"}; }) != "no error");
  CHECK(with_config([](json& c) { c["vision_config"] = json::array(); }) != "no error");
  CHECK(with_config([](json& c) { c["vision_config"]["fullatt_block_indexes"] = "all"; }) != "no error");
}

TEST_CASE("weights: missing, of another shape, unknown") {
  contains(with_weights([](Tensors& t) { t.erase("model.layers.3.mlp.up_proj.weight"); }),
           {"model.layers.3.mlp.up_proj.weight"});
  contains(with_weights([](Tensors& t) { t.erase("visual.merger.ln_q.weight"); }),
           {"visual.merger.ln_q.weight"});
  contains(with_weights([](Tensors& t) {
             auto& norm = t.at("model.norm.weight");
             norm = norm.narrow(0, 0, 200);
           }),
           {"model.norm.weight", "[200]", "[256]", "model.safetensors"});
  contains(with_weights([](Tensors& t) { t["model.layers.6.input_layernorm.weight"] = at::zeros({256}); }),
           {"model.layers.6.input_layernorm.weight"});
  contains(with_weights([](Tensors& t) { t["model.norm.weight"] = at::zeros({256}, at::kLong); }),
           {"model.norm.weight"});
  contains(with_weights([](Tensors& t) { t["model.visual.merger.ln_q.weight"] = at::zeros({128}); }),
           {"visual.merger.ln_q.weight"});  // twice, under both names
  contains(with_weights([](Tensors& t) { t.clear(); }), {"model"});
}

TEST_CASE("a tied model may store its head and the rotary frequencies") {
  CHECK(with_weights([](Tensors& t) {
          t["lm_head.weight"] = t.at("model.embed_tokens.weight").clone();
          t["model.layers.0.self_attn.rotary_emb.inv_freq"] = at::zeros({32});
        }) == "no error");
}

TEST_CASE("files that are missing or no JSON") {
  CHECK_THROWS_WITH_AS(load_vlm("/nowhere", {}), doctest::Contains("/nowhere"), Error);
  const BrokenModel model;
  std::filesystem::remove(model.dir() / "model.safetensors");
  contains(error_of(model), {model.dir().c_str()});
  std::ofstream(model.dir() / "config.json") << "{ \"model_type\": ";
  contains(error_of(model), {"config.json"});

  const BrokenModel silent;  // loads, but has no words
  for (const char* file : {"tokenizer.json", "vocab.json", "merges.txt"})
    std::filesystem::remove(silent.dir() / file);
  const auto loaded = load_vlm(silent.dir(), {.dtype = at::kFloat});
  CHECK_THROWS_WITH_AS(loaded->tokenizer(), doctest::Contains("no tokenizer.json"), Error);
}

TEST_CASE("an image processor that makes other patches than the encoder takes") {
  for (const auto& [key, value] :
       {std::pair{"patch_size", 16}, {"merge_size", 1}, {"temporal_patch_size", 1}}) {
    const BrokenModel model;
    model.edit_json("preprocessor_config.json", [&](json& c) { c[key] = value; });
    contains(error_of(model), {"preprocessor_config.json", key});
  }
}

TEST_CASE("prompts from ids: errors") {
  const Vlm& model = test::tiny_engine().model();
  const auto prompt = [&](std::vector<int64_t> ids, std::vector<Grid> grids) {
    std::vector<Patches> patches;
    for (const Grid& grid : grids)
      patches.push_back({at::zeros({int64_t{grid.t} * grid.h * grid.w, 1176}), grid});
    return model.prompt(ids, patches);
  };
  CHECK(prompt({1, 566, 2}, {{1, 4, 6}}).ids.size() == 8);
  CHECK(prompt({1, 566, 566, 566, 566, 566, 566, 2}, {{1, 4, 6}}).ids.size() == 8);
  CHECK_THROWS_WITH_AS(prompt({1, 566, 566, 2}, {{1, 4, 6}}), "prompt: image 1 has 2 places, expected 1 or 6",
                       Error);
  CHECK_THROWS_WITH_AS(prompt({566, 1, 566}, {{1, 2, 2}}),
                       "prompt: more image places than the 1 images given", Error);
  CHECK_THROWS_WITH_AS(prompt({1}, {{1, 2, 2}}), doctest::Contains("1 images were given but it has 0 places"),
                       Error);
  CHECK_THROWS_WITH_AS(prompt({}, {}), "prompt: it is empty", Error);
  CHECK_THROWS_WITH_AS(prompt({576}, {}), "prompt: token id 576 is outside the vocabulary of 576", Error);
  CHECK_THROWS_AS(prompt({-1}, {}), Error);
  CHECK_THROWS_WITH_AS(prompt(std::vector<int64_t>(5000, 1), {}), doctest::Contains("context of 4096"),
                       Error);
}

TEST_CASE("image bounds") {
  const Vlm& model = test::tiny_engine().model();
  const Image image{280, 280, std::vector<uint8_t>(3 * 280 * 280, 90)};
  const auto tokens = [&](ImageBounds bounds) {
    return model.prompt({test::user("x", 1)}, {image}, bounds).visual_rows.size();
  };
  CHECK(tokens({}) == 100);
  CHECK(tokens({.min_pixels = {}, .max_pixels = 28 * 28 * 30}) <= 30);
  CHECK(tokens({.min_pixels = 28 * 28 * 150, .max_pixels = {}}) >= 150);
  CHECK_THROWS_WITH_AS(tokens({.min_pixels = 100, .max_pixels = 50}), doctest::Contains("image bounds"),
                       Error);
  CHECK_THROWS_AS(tokens({.min_pixels = -5, .max_pixels = {}}), Error);
  CHECK_THROWS_AS(model.prompt({test::user("x", 2)}, {image}, {}), Error);
  CHECK_THROWS_AS(model.prompt({test::user("x", 0)}, {image}, {}), Error);
}
