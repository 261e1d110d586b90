// The compared pruning methods against the reference benchmark's own numbers (float32): the selection
// functions on stored arrays, then whole runs of the tiny models.
#include "glimpse/base/check.h"
#include "glimpse/engine/engine.h"
#include "glimpse/image/clip_image.h"
#include "glimpse/image/decode.h"
#include "glimpse/image/qwen_image.h"
#include "glimpse/models/clip_text.h"
#include "glimpse/models/llava.h"
#include "glimpse/prune/cdpruner.h"
#include "glimpse/prune/divprune.h"
#include "glimpse/prune/keep_rule.h"
#include "glimpse/prune/shares.h"
#include "glimpse/prune/visionzip.h"
#include "glimpse/prune/vscan.h"
#include "golden_case.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;
using nlohmann::json;
using test::difference;
using test::GoldenCase;
using Ids = std::vector<int64_t>;

namespace {

std::filesystem::path methods_dir() {
  return test::golden_dir() / "methods";
}

Ids sorted(Ids ids) {
  std::sort(ids.begin(), ids.end());
  return ids;
}

void compare(const std::string& what, const at::Tensor& got, const at::Tensor& expected, double limit) {
  const double d = difference(got, expected);
  CHECK_MESSAGE(d <= limit, what << ": differs by " << d << ", limit " << limit << ", shape " << got.sizes());
}

// The arrays of one of several cases that share a file.
struct PureCase {
  const GoldenCase& file;
  size_t index;
  const json& info;

  std::string key(const std::string& name) const { return std::to_string(index) + "." + name; }
  const at::Tensor& operator[](const std::string& name) const { return file[key(name)]; }
  Ids integers(const std::string& name) const { return file.integers(key(name)); }
};

template <class Check>
void each_pure(const std::string& function, const Check& check_case) {
  const GoldenCase file(methods_dir() / "pure" / (function + ".json"));
  for (size_t i = 0; i < file.info["cases"].size(); ++i) {
    INFO(function << " " << i << " " << file.info["cases"][i].dump());
    check_case(PureCase{file, i, file.info["cases"][i]});
  }
}

void check_merge(const auto& golden, const Assignment& merged) {
  CHECK(merged.dropped == golden.integers("merge_indices"));
  CHECK(merged.target == golden.integers("merge_target"));
}

void check_visionzip_llava(const auto& golden, const at::Tensor& received, int64_t dominant,
                           int64_t contextual) {
  const int64_t n = received.size(0);
  const at::Tensor states = golden["hidden_states"].narrow(0, 1, n);
  const VisionZipChoice choice =
      visionzip_choice(received, golden["metric"].narrow(0, 1, n), dominant - 1, contextual);
  CHECK(choice.dominant == golden.integers("dominant_indices"));
  CHECK(choice.contextual == golden.integers("contextual_indices"));
  check_merge(golden, choice.merged);
  const at::Tensor kept = states.index_select(0, at::tensor(choice.dominant, at::kLong));
  const at::Tensor selected =
      at::cat({golden["hidden_states"].narrow(0, 0, 1), kept, visionzip_merge(states, choice)});
  compare("selected_hidden", selected, golden["selected_hidden"], 2e-4);
}

void check_vscan(const auto& golden, const Ids& local, const Ids& global, const at::Tensor& features) {
  CHECK(local == sorted(golden.integers("local_indices")));
  CHECK(global == sorted(golden.integers("global_indices")));
  const Ids keep = merge_indices(local, global);
  CHECK(keep == sorted(golden.integers("kept_indices")));
  check_merge(golden, assign(unit_rows(features), others(features.size(0), keep), keep));
  compare("merged", vscan_merge(features, keep), golden["merged"], 2e-4);
}

void check_vscan_llava(const auto& golden, const at::Tensor& shallow, const at::Tensor& deep, int64_t count,
                       const at::Tensor& features) {
  const Ids local = vscan_local(shallow, at::arange(576), 24, 24, 6, count / 2 / 16, count / 2);
  check_vscan(golden, local, vscan_global(deep, local, count - count / 2), features);
}

// A language model of one layer whose norm and projections are the case's.
Decoder one_layer(const PureCase& golden, int64_t kv_heads, double eps) {
  const DecoderConfig config{32, 8, 1, 4, kv_heads, 8, 4, eps, true, true};
  const auto stored = [&](const std::string& name) -> std::string {
    if (name.ends_with("input_layernorm.weight")) return "input_layernorm";
    for (const std::string part : {"q", "k"})
      for (const std::string kind : {"weight", "bias"})
        if (name.ends_with(part + "_proj." + kind)) return part + (kind == "bias" ? "_bias" : "_proj");
    return "";
  };
  const Weights weights = Weights::fresh([&](const std::string& name, at::IntArrayRef shape) {
    const std::string key = golden.key(stored(name));
    return golden.file.has(key) ? golden.file[key] : at::zeros(shape);
  });
  return Decoder::load(config, weights, "model.", "lm_head", at::kFloat);
}

void check_last_row(const PureCase& golden, const Decoder& decoder, const Rope* rope) {
  const at::Tensor& features = golden["features"];
  const at::Tensor all = decoder.last_row_attention(0, features, rope);
  const at::Tensor scores = all.narrow(0, golden.info["pre"], golden.info["N"]);
  compare("scores", scores, golden["scores"], 5e-6);
  CHECK(top_indices(scores, part_of(golden.info["N"], golden.info["ratio"])) ==
        golden.integers("kept_indices"));
}

}  // namespace

TEST_CASE("DivPrune's choice") {
  each_pure("divprune", [](const PureCase& golden) {
    const Ids order = golden.integers("selection_order");
    CHECK(divprune_order(golden["features"], std::ssize(order)) == order);
    CHECK(sorted(order) == golden.integers("kept_indices"));
  });
  for (const GoldenCase& golden : test::golden_cases(methods_dir() / "llava_divprune")) {
    INFO(golden.name);
    const Ids order = golden.integers("selection_order");
    CHECK(divprune_order(golden["image_embeds"], std::ssize(order)) == order);
  }
}

TEST_CASE("CDPruner's choice") {
  const auto check_case = [](const auto& golden, const at::Tensor& features, const at::Tensor& image) {
    const at::Tensor relevance = cdpruner_relevance(image, golden["text_embeds"], true);
    compare("relevance", relevance, golden["relevance"], 2e-5);
    const Ids order = golden.integers("selection_order");
    CHECK(cdpruner_order(features, relevance, std::ssize(order)) == order);
    CHECK(sorted(order) == golden.integers("kept_indices"));
  };
  each_pure("cdpruner",
            [&](const PureCase& golden) { check_case(golden, golden["features"], golden["image_embeds"]); });
  for (const GoldenCase& golden : test::golden_cases(methods_dir() / "llava_cdpruner")) {
    INFO(golden.name);
    check_case(golden, golden["image_embeds"], golden["clip_image_embeds"]);
    compare("similarity", cosines(unit_rows(golden["image_embeds"])), golden["similarity"], 2e-5);
  }
}

TEST_CASE("VisionZip's choice") {
  each_pure("visionzip_llava", [](const PureCase& golden) {
    check_visionzip_llava(golden, golden["cls_attention"].sum(0), golden.info["dominant"],
                          golden.info["contextual"]);
  });
  for (const GoldenCase& golden : test::golden_cases(methods_dir() / "llava_visionzip")) {
    INFO(golden.name);
    const json& settings = golden.info["settings"];
    check_visionzip_llava(golden, golden["scores"], settings["dominant"], settings["contextual"]);
  }
  each_pure("visionzip_qwen", [](const PureCase& golden) {
    const int64_t n = golden["scores"].size(0);
    const VisionZipChoice choice =
        visionzip_choice(golden["scores"], golden["metric"], part_of(n, golden.info["dominant_ratio"]),
                         std::max<int64_t>(part_of(n, golden.info["contextual_ratio"]), 1));
    CHECK(choice.dominant == golden.integers("dominant_indices"));
    CHECK(choice.contextual == golden.integers("contextual_indices"));
    check_merge(golden, choice.merged);
  });
}

TEST_CASE("VScan's choice") {
  each_pure("vscan_llava", [](const PureCase& golden) {
    check_vscan_llava(golden, golden["shallow_attention"].mean(0), golden["deep_attention"].mean(0),
                      golden.info["T"], golden["features"]);
  });
  each_pure("vscan_qwen", [](const PureCase& golden) {
    const int64_t rows = golden.info["gh"], cols = golden.info["gw"];
    const int64_t keep = part_of(rows * cols, golden.info["ratio"]), windows = vscan_windows(rows, cols, 4);
    const Ids local = vscan_local(golden["local_scores"], at::arange(rows * cols), rows, cols, 4,
                                  (keep / 2 + windows - 1) / windows, keep / 2);
    check_vscan(golden, local, vscan_global(golden["global_scores"], local, keep - keep / 2),
                golden["features"]);
  });
}

TEST_CASE("the last row's attention") {
  each_pure("pdrop", [](const PureCase& golden) {
    const Rope rope = rope_tables(at::arange(golden["features"].size(0)), 8, 10000);
    check_last_row(golden, one_layer(golden, 4, 1e-5), &rope);
  });
  each_pure("vscan_llm_qwen",
            [](const PureCase& golden) { check_last_row(golden, one_layer(golden, 2, 1e-6), nullptr); });
}

namespace {

struct Seen {
  View view;
  Selection selection;
  Ids kept;  // original indices
};

// Delegates to a pruner and notes by layer what it saw and chose.
class Recorder : public Pruner {
 public:
  explicit Recorder(std::shared_ptr<const Pruner> inner) : inner_(std::move(inner)) {}
  std::string name() const override { return inner_->name(); }
  json settings() const override { return inner_->settings(); }
  std::vector<Cut> cuts() const override { return inner_->cuts(); }
  Taps taps() const override { return inner_->taps(); }
  Selection select(const View& view, const Cut& cut, const Budget& budget) const override {
    Selection selection = inner_->select(view, cut, budget);
    Ids kept;
    for (const int64_t index : selection.keep) kept.push_back(view.living[index].item<int64_t>());
    seen[cut.layer] = {view, selection, kept};
    return selection;
  }
  mutable std::map<int64_t, Seen> seen;

 private:
  std::shared_ptr<const Pruner> inner_;
};

std::string joined(const std::vector<double>& values) {
  std::string out;
  for (const double value : values) {
    if (!out.empty()) out += '+';
    out += concat(value);
  }
  return out.empty() ? "none" : out;
}

// The composition that a case's settings mean. Counts become fractions that round to them.
std::string composition(const GoldenCase& golden) {
  const json& s = golden.info["settings"];
  const std::string method = golden.info["method"];
  const auto list = [&](const char* key) {
    return s.contains(key) && s[key].is_array() ? s[key].get<std::vector<double>>() : std::vector<double>();
  };
  if (method == "divprune") return concat("divprune(keep=", s["ratio"], ")");
  if (method == "cdpruner")
    return concat("cdpruner(keep=", (s["visual_token_num"].get<double>() + 0.25) / 64, ",relevance=clip)");
  if (method == "visionzip")
    return concat("visionzip(dominant=", s["dominant_ratio"], ",contextual=", s["contextual_ratio"], ")");
  if (method == "pdrop")
    return concat("pyramiddrop(layers=", joined(list("layer_list")),
                  ",keep=", joined(list("image_token_ratio_list")), ")");
  CHECK(method == "vscan");
  if (s.contains("image_token_ratio"))
    return concat("vscan(keep=", s["image_token_ratio"], ",layers=", joined(list("layer_list")),
                  ",layer_keep=", joined(list("image_token_ratio_list")),
                  ",rotate_twice=", golden.info["attention_path"] == "flash_attention_2" ? "true" : "false",
                  ")");
  double living = golden.info["stats"]["kept"];
  std::vector<double> fractions;
  for (const double count : list("image_token_list")) {
    fractions.push_back((count + 0.25) / living);
    living = count;
  }
  return concat("vscan(shallow=5,keep=", (s["visual_token_num"].get<double>() + 0.25) / 576,
                ",layers=", joined(list("layer_list")), ",layer_keep=", joined(fractions), ")");
}

std::vector<Patches> patches_of(const GoldenCase& golden) {
  const auto path = test::golden_dir() / golden.info["inputs"].get<std::string>();
  const bool clip = golden.info.contains("vision_tower");
  if (!std::filesystem::exists(path.string() + ".safetensors")) {
    const Image image = load_image(path.string() + ".png");
    return {clip ? clip_patches(image, {}, 14) : qwen_patches(image, {})};
  }
  const auto arrays = load_safetensors(path.string() + ".safetensors").tensors;
  if (clip) return {cut_patches(arrays.at("pixel_values"), 14)};
  const at::Tensor grid = arrays.at("image_grid_thw").to(at::kInt).contiguous();
  const int* size = grid.const_data_ptr<int>();
  return {{arrays.at("pixel_values"), Grid{size[0], size[1], size[2]}}};
}

void check_scores(const GoldenCase& golden, const Seen& encoder, int64_t heads) {
  const auto received = [&](size_t tap) { return encoder.view.vision_attention.at(tap).received; };
  if (golden.has("scores")) {  // VisionZip: summed over the queries, four patches per token
    compare("scores", received(0) * (4.0 * static_cast<double>(received(0).numel())), golden["scores"], 2e-5);
    compare("metric", encoder.view.vision_attention.at(0).keys, golden["metric"], 3e-5);
    compare("kept_features", encoder.selection.features, golden["kept_features"], 2e-4);
  }
  if (golden.has("local_scores")) {  // VScan: summed over the heads
    compare("local_scores", received(0) * static_cast<double>(heads), golden["local_scores"], 2e-7);
    compare("global_scores", received(1) * static_cast<double>(heads), golden["global_scores"], 2e-7);
  }
  if (golden.has("shallow_scores")) {
    compare("shallow_scores", received(0), golden["shallow_scores"], 1e-6);
    compare("deep_scores", received(1), golden["deep_scores"], 1e-6);
  }
  if (golden.has("clip_image_embeds")) {
    const View& view = encoder.view;
    compare("clip_image_embeds", view.shared_image, golden["clip_image_embeds"], 3e-5);
    compare("text_embeds", view.shared_question, golden["text_embeds"], 3e-5);
    const at::Tensor relevance = cdpruner_relevance(view.shared_image, view.shared_question, true);
    compare("relevance", relevance, golden["relevance"], 2e-5);
    const Ids order = golden.integers("selection_order");
    CHECK(cdpruner_order(view.hidden, relevance, std::ssize(order)) == order);
  }
  if (golden.has("merged")) compare("merged", encoder.selection.features, golden["merged"], 2e-4);
  if (golden.has("image_embeds")) compare("image_embeds", encoder.view.hidden, golden["image_embeds"], 2e-4);
  // What the language model gets: the text around what is left of the one image.
  const at::Tensor &text = encoder.view.text_hidden, &features = encoder.selection.features;
  const at::Tensor left = features.defined()
                              ? features
                              : encoder.view.hidden.index_select(0, at::tensor(encoder.kept, at::kLong));
  const int64_t before = encoder.view.question;
  compare("llm_inputs_embeds",
          at::cat({text.narrow(0, 0, before), left, text.narrow(0, before, text.size(0) - before)}),
          golden["llm_inputs_embeds"], 2e-4);
}

// The ids and the mask that CLIP's text tower gets for the question.
void check_pieces(const GoldenCase& golden) {
  const auto dir = test::golden_dir() / golden.info["vision_tower"].get<std::string>();
  const ClipText clip =
      ClipText::load(read_json(dir / "config.json"), 64, Weights::open(dir, Llava::canonical_name),
                     Tokenizer::load(dir), at::kFloat);
  const auto pieces = clip.pieces(golden.info["text"]);
  Ids ids, mask;
  for (const Ids& piece : pieces) {
    ids.insert(ids.end(), piece.begin(), piece.end());
    mask.resize(ids.size(), 1);
    ids.resize((ids.size() + 76) / 77 * 77, 0);
    mask.resize(ids.size(), 0);
  }
  CHECK(ids == golden.integers("text_input_ids"));
  CHECK(mask == golden.integers("text_attention_mask"));
}

void run_case(const GoldenCase& golden) {
  LoadOptions options;
  options.dtype = at::kFloat;
  // The tiny LLaVA's own context is shorter than a picture of 576 tokens.
  if (golden.info.contains("vision_tower"))
    options.config_overrides = {
        {"mm_vision_tower", test::golden_dir() / golden.info["vision_tower"].get<std::string>()},
        {"max_position_embeddings", 1024}};
  const Engine engine(load_vlm(test::golden_dir() / golden.info["model"].get<std::string>(), options),
                      nullptr);
  const Vlm& model = engine.model();
  Sequence sequence;
  sequence.prompt = model.prompt(golden.integers("input_ids"), patches_of(golden));
  if (golden.info.contains("text")) {
    sequence.prompt.question = golden.info["text"];
    check_pieces(golden);
  }
  const PrunerChain chain = make_pruners(composition(golden), engine.pruner_context());
  const auto recorder = std::make_shared<Recorder>(chain.at(0));
  sequence.pruners = {recorder};
  at::Tensor step = prefill(model, std::vector<Sequence*>{&sequence});

  Ids expected_kept;
  for (const auto& [layer, seen] : recorder->seen) {
    const std::string key = layer == 0 ? "kept_indices" : "kept_indices." + std::to_string(layer);
    expected_kept = sorted(golden.integers(key));
    CHECK_MESSAGE(seen.kept == expected_kept, key);
    if (layer == 0) {
      check_scores(golden, seen, 4);
      continue;
    }
    compare("scores." + std::to_string(layer), seen.view.ahead, golden["scores." + std::to_string(layer)],
            5e-6);
    if (std::next(recorder->seen.find(layer)) == recorder->seen.end())
      compare("position_ids_after", sequence.position_ids.squeeze(0),
              golden["position_ids_after." + std::to_string(layer)], 0);
  }
  CHECK(recorder->seen.size() == recorder->cuts().size());
  CHECK(sequence.kept == expected_kept);
  if (recorder->seen.size() == 1 && recorder->seen.contains(0))
    compare("llm_position_ids", sequence.position_ids.squeeze(0), golden["llm_position_ids"], 0);

  const auto check_lengths = [&](const char* key) {
    for (size_t l = 0; l < sequence.cache.layers.size(); ++l)
      CHECK_MESSAGE(sequence.cache.layers[l].length() == golden.integers(key)[l], key << " " << l);
  };
  check_lengths("kv_lengths");
  compare("first_logits", step[0], golden["first_logits"], 5e-4);
  Ids ids;
  const Ids expected = golden.integers("generated_ids");
  for (size_t i = 0; i < expected.size(); ++i) {
    compare("step_top2", std::get<0>(step[0].topk(2)), golden["step_top2"][static_cast<int64_t>(i)], 5e-4);
    ids.push_back(step[0].argmax().item<int64_t>());
    if (i + 1 < expected.size()) step = decode_step(model, std::vector<Sequence*>{&sequence}, {ids.back()});
  }
  CHECK(ids == expected);
  check_lengths("kv_lengths_end");
}

}  // namespace

TEST_CASE("whole runs") {
  int run = 0;
  for (const char* folder :
       {"llava_divprune", "llava_cdpruner", "llava_pdrop", "llava_vscan", "qwen_visionzip", "qwen_vscan"})
    for (const GoldenCase& golden : test::golden_cases(methods_dir() / folder)) {
      INFO(folder << "/" << golden.name << ": " << composition(golden));
      run_case(golden);
      ++run;
    }
  CHECK(run == 31);
}
