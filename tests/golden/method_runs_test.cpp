// Whole runs of the tiny models with the compared pruning methods against the reference benchmark's own
// numbers (float32).
#include <numeric>

#include "glimpse/base/check.h"
#include "glimpse/engine/engine.h"
#include "glimpse/engine/prefill.h"
#include "glimpse/image/clip_image.h"
#include "glimpse/image/decode.h"
#include "glimpse/image/qwen_image.h"
#include "glimpse/models/clip_text.h"
#include "glimpse/models/llava.h"
#include "glimpse/prune/cdpruner.h"
#include "golden/counts.h"
#include "golden/inputs.h"
#include "golden/method_checks.h"

using namespace glimpse;
using namespace glimpse::test;
using nlohmann::json;

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
    for (const int64_t index : selection.keep) kept.push_back(view.living[index]);
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

// The case's vision encoder: CLIP's folder, or the model's own.
struct Encoder {
  bool clip;
  std::filesystem::path tower;
  int64_t heads, patch;
  int64_t patches_per_token = 1;

  explicit Encoder(const GoldenCase& golden) : clip(golden.info.contains("vision_tower")) {
    const json model = read_json(golden_dir() / golden.info["model"].get<std::string>() / "config.json");
    if (clip) tower = golden_dir() / golden.info["vision_tower"].get<std::string>();
    heads =
        clip ? clip_vision(tower, "num_attention_heads") : model["vision_config"]["num_heads"].get<int64_t>();
    patch = clip ? clip_vision(tower, "patch_size") : model["vision_config"]["patch_size"].get<int64_t>();
    if (!clip)
      patches_per_token = std::llround(std::pow(model["vision_config"]["spatial_merge_size"].get<int>(), 2));
  }
};

// The composition that a case's settings mean for so many visual tokens. Counts become fractions that round
// to them.
std::string composition(const GoldenCase& golden, int64_t tokens) {
  const json& s = golden.info["settings"];
  const std::string method = golden.info["method"];
  const auto list = [&](const char* key) {
    return s.contains(key) && s[key].is_array() ? s[key].get<std::vector<double>>() : std::vector<double>();
  };
  if (method == "divprune") return concat("divprune(keep=", s["ratio"], ")");
  if (method == "cdpruner")
    return concat(
        "cdpruner(keep=", (s["visual_token_num"].get<double>() + 0.25) / static_cast<double>(tokens),
        ",relevance=clip)");
  if (method == "visionzip")
    return concat("visionzip(dominant=", s.contains("dominant") ? s["dominant"] : s["dominant_ratio"],
                  ",contextual=", s.contains("contextual") ? s["contextual"] : s["contextual_ratio"], ")");
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
  return concat(
      "vscan(shallow=5,keep=", (s["visual_token_num"].get<double>() + 0.25) / static_cast<double>(tokens),
      ",layers=", joined(list("layer_list")), ",layer_keep=", joined(fractions), ")");
}

std::vector<Patches> patches_of(const GoldenCase& golden, const Encoder& encoder) {
  const auto path = golden_dir() / golden.info["inputs"].get<std::string>();
  if (!std::filesystem::exists(path.string() + ".safetensors")) {
    const Image image = load_image(path.string() + ".png");
    return {encoder.clip ? clip_patches(image, {}, encoder.patch) : qwen_patches(image, {})};
  }
  const auto arrays = load_safetensors(path.string() + ".safetensors").tensors;
  if (encoder.clip) return {cut_patches(arrays.at("pixel_values"), encoder.patch)};
  const at::Tensor grid = arrays.at("image_grid_thw").to(at::kInt).contiguous();
  const int* size = grid.const_data_ptr<int>();
  return {{arrays.at("pixel_values"), Grid{size[0], size[1], size[2]}}};
}

// Keeps everything that reaches the language model and notes what that is.
class Entrance : public Pruner {
 public:
  std::string name() const override { return "entrance"; }
  json settings() const override { return json::object(); }
  std::vector<Cut> cuts() const override { return {{.place = Cut::Place::before}}; }
  Selection select(const View& view, const Cut&, const Budget&) const override {
    seen = view;
    Ids all(view.count());
    std::iota(all.begin(), all.end(), int64_t{0});
    return {all, {}, {}};
  }
  mutable View seen;
};

// The rows of a prompt with one image, as they stand.
at::Tensor rows_of(const View& view, const Prompt& prompt) {
  const int64_t before = prompt.visual_rows.front(), after = view.text_hidden.size(0) - before;
  return at::cat(
      {view.text_hidden.narrow(0, 0, before), view.hidden, view.text_hidden.narrow(0, before, after)});
}

// What a cut before the language model saw and chose.
void check_selection(const GoldenCase& golden, const Seen& seen, const Encoder& encoder) {
  const auto heads = static_cast<double>(encoder.heads);
  const View& view = seen.view;
  const json& settings = golden.info["settings"];
  const std::string method = golden.info["method"];
  const auto received = [&](size_t tap) { return view.vision_attention.at(tap).received; };
  const int64_t n = view.total();
  const Segment& image = view.segments[0];
  if (golden.has("hidden_states")) {  // VisionZip on LLaVA: the class token is the first row
    compare("hidden_states", view.hidden, golden["hidden_states"], 2e-4);
    const at::Tensor scores = received(0).narrow(0, 0, n) * heads;
    compare("scores", scores, golden["scores"], 1e-5);
    compare("cls_attention", scores, golden["cls_attention"].sum(0), 1e-5);
    const at::Tensor keys = view.vision_attention.at(0).keys;
    compare("metric", keys.index_select(0, view.index), golden["metric"], 3e-5);
    check_visionzip(golden, scores, keys.narrow(0, 0, n), settings["dominant"].get<int64_t>() - 1,
                    settings["contextual"]);
    compare("selected_hidden", seen.selection.features, golden["selected_hidden"], 2e-4);
  } else if (method == "visionzip") {  // summed over the queries, several patches per token
    const at::Tensor& keys = view.vision_attention.at(0).keys;
    const auto queries = static_cast<double>(encoder.patches_per_token * n);
    compare("scores", received(0) * queries, golden["scores"], 2e-5);
    compare("metric", keys, golden["metric"], 3e-5);
    check_visionzip(golden, received(0), keys, part_of(n, settings["dominant_ratio"]),
                    std::max<int64_t>(part_of(n, settings["contextual_ratio"]), 1));
    compare("kept_features", seen.selection.features, golden["kept_features"], 2e-4);
  }
  if (golden.has("local_scores")) {  // VScan on Qwen: summed over the heads
    compare("local_scores", received(0) * heads, golden["local_scores"], 2e-7);
    compare("global_scores", received(1) * heads, golden["global_scores"], 2e-7);
    check_vscan_qwen(golden, received(0), received(1), image.rows, image.cols, settings["image_token_ratio"],
                     view.hidden);
  }
  if (golden.has("shallow_scores")) {
    compare("shallow_scores", received(0), golden["shallow_scores"], 1e-6);
    compare("deep_scores", received(1), golden["deep_scores"], 1e-6);
    check_vscan_llava(golden, received(0), received(1), settings["visual_token_num"], view.hidden);
  }
  if (golden.has("merged")) compare("merged", seen.selection.features, golden["merged"], 2e-4);
  const at::Tensor similarity = cosines(unit_rows(view.hidden));
  if (golden.has("distance")) compare("distance", 1 - similarity, golden["distance"], 2e-5);
  if (golden.has("clip_image_embeds")) {
    compare("clip_image_embeds", view.shared_image, golden["clip_image_embeds"], 3e-5);
    compare("text_embeds", view.shared_question, golden["text_embeds"], 3e-5);
    const at::Tensor relevance = cdpruner_relevance(view.shared_image, view.shared_question, true);
    compare("relevance", relevance, golden["relevance"], 2e-5);
    compare("similarity", similarity, golden["similarity"], 2e-5);
    compare("kernel", similarity * at::outer(relevance, relevance), golden["kernel"], 2e-5);
    const Ids order = golden.integers("selection_order");
    CHECK(cdpruner_order(view.hidden, relevance, std::ssize(order)) == order);
  }
}

// In the order of the rows.
Ids kept_by_encoder(const GoldenCase& golden, int64_t total) {
  if (golden.has("kept_indices")) return sorted(golden.integers("kept_indices"));
  Ids kept = {total};  // VisionZip on LLaVA: the class token first
  for (const char* list : {"dominant_indices", "contextual_indices"})
    for (const int64_t token : golden.integers(list)) kept.push_back(token);
  return kept;
}

// The ids and the mask that CLIP's text tower gets for the question.
void check_pieces(const GoldenCase& golden) {
  const auto dir = golden_dir() / golden.info["vision_tower"].get<std::string>();
  const ClipText clip =
      ClipText::load(read_json(dir / "config.json"), clip_vision(dir, "hidden_size"),
                     Weights::open(dir, Llava::canonical_name), Tokenizer::load(dir), at::kFloat);
  const auto pieces = clip.pieces(golden.info["text"]);
  Ids ids, mask;
  for (const Ids& piece : pieces) {
    ids.insert(ids.end(), piece.begin(), piece.end());
    mask.resize(ids.size(), 1);
    ids.resize((ids.size() + ClipText::positions - 1) / ClipText::positions * ClipText::positions, 0);
    mask.resize(ids.size(), 0);
  }
  CHECK(ids == golden.integers("text_input_ids"));
  CHECK(mask == golden.integers("text_attention_mask"));
}

void run_case(const GoldenCase& golden) {
  const Encoder encoder(golden);
  LoadOptions options;
  options.dtype = at::kFloat;
  options.device = test_device();
  // A tiny LLaVA's own context may be shorter than the picture.
  if (encoder.clip)
    options.config_overrides = {{"mm_vision_tower", encoder.tower}, {"max_position_embeddings", 4096}};
  const Engine engine(load_vlm(golden_dir() / golden.info["model"].get<std::string>(), options), nullptr);
  const Vlm& model = engine.model();
  Sequence sequence;
  sequence.prompt = model.prompt(golden.integers("input_ids"), patches_of(golden, encoder));
  const std::string method = composition(golden, std::ssize(sequence.prompt.visual_rows));
  INFO(method);
  if (golden.info.contains("text")) {
    sequence.prompt.question = golden.info["text"];
    check_pieces(golden);
  }
  const PrunerChain chain = make_pruners(method, engine.pruner_context());
  const auto recorder = std::make_shared<Recorder>(chain.at(0));
  const auto entrance = std::make_shared<Entrance>();
  sequence.pruners = {recorder, entrance};
  if (golden.has("rope_deltas"))
    CHECK(sequence.prompt.next_position - std::ssize(sequence.prompt.ids) ==
          golden.integers("rope_deltas").at(0));
  PrefillBatch batch(model);
  batch.add(sequence);
  const auto check_positions = [&](const std::string& key) {
    compare(key, sequence.position_ids.squeeze(0), golden[key], 0);
  };
  while (!batch.started()) CHECK(batch.step().empty());  // the encoder
  for (int64_t layer = 0; !batch.done(); ++layer) {      // whole, as the prompts are short
    CHECK(batch.step().empty());
    if (layer == 0) check_positions("llm_position_ids");
    const std::string after = concat("position_ids_after.", layer);
    if (golden.has(after)) check_positions(after);
  }
  at::Tensor step = batch.finish();

  const View& entered = entrance->seen;
  compare("llm_inputs_embeds", rows_of(entered, sequence.prompt), golden["llm_inputs_embeds"], 2e-4);
  if (golden.has("projected")) compare("projected", entered.hidden, golden["projected"], 2e-4);
  if (golden.has("image_embeds"))
    compare("image_embeds", (recorder->seen.contains(0) ? recorder->seen.at(0).view : entered).hidden,
            golden["image_embeds"], 2e-4);
  Ids expected_kept;
  for (const auto& [layer, seen] : recorder->seen) {
    if (layer == 0) {
      expected_kept = kept_by_encoder(golden, seen.view.total());
      CHECK(seen.kept == expected_kept);
      check_selection(golden, seen, encoder);
      if (golden.has("kept_positions")) {
        Ids positions;
        for (const int64_t token : seen.kept) positions.push_back(sequence.prompt.visual_rows[token]);
        CHECK(positions == golden.integers("kept_positions"));
      }
      continue;
    }
    const std::string at = concat(".", layer);
    expected_kept = sorted(golden.integers("kept_indices" + at));
    CHECK_MESSAGE(seen.kept == expected_kept, layer);
    compare("scores" + at, seen.view.ahead, golden["scores" + at], 5e-6);
    compare("hidden_before" + at, rows_of(seen.view, sequence.prompt), golden["hidden_before" + at], 5e-4);
  }
  CHECK(recorder->seen.size() == recorder->cuts().size());
  CHECK(sequence.kept == sorted(expected_kept));

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
  int64_t run = 0;
  for (const GoldenCase& golden : cases_below(methods_dir(), "")) {
    if (!golden.info.contains("method")) continue;
    INFO(golden.info["method"].get<std::string>() << "/" << golden.name);
    run_case(golden);
    ++run;
  }
  check_count("whole runs of compared methods", run, 36);
}

TEST_CASE("some golden data was found") {
  CHECK(model_cases().size() + cases_below(methods_dir(), "").size() > 0);
}
