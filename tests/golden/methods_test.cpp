// The selection functions of the compared pruning methods against the reference benchmark's own numbers
// (float32).
#include "glimpse/nn/decoder.h"
#include "glimpse/prune/cdpruner.h"
#include "glimpse/prune/divprune.h"
#include "golden/counts.h"
#include "golden/method_checks.h"

using namespace glimpse;
using namespace glimpse::test;
using nlohmann::json;

namespace {

// The arrays of one of several cases that share a file.
struct PureCase {
  const GoldenCase& file;
  size_t index;
  const json& info;

  std::string key(const std::string& name) const { return std::to_string(index) + "." + name; }
  at::Tensor operator[](const std::string& name) const { return file[key(name)].to(test_device()); }
  Ids integers(const std::string& name) const { return file.integers(key(name)); }
  bool has(const std::string& name) const { return file.has(key(name)); }
};

template <class Check>
void each_pure(const std::string& function, const Check& check_case) {
  if (!own_golden_data() && !std::filesystem::exists(methods_dir() / "pure" / (function + ".json")))
    return check_count("cases of " + function, 0, 5);
  const GoldenCase file(methods_dir() / "pure" / (function + ".json"));
  for (size_t i = 0; i < file.info["cases"].size(); ++i) {
    INFO(function << " " << i << " " << file.info["cases"][i].dump());
    check_case(PureCase{file, i, file.info["cases"][i]});
  }
  check_count("cases of " + function, std::ssize(file.info["cases"]), 5);
}

// The whole runs with a method that compare its choice alone, too.
std::vector<GoldenCase> runs_with(const std::string& method, int64_t own) {
  std::vector<GoldenCase> runs;
  for (GoldenCase& golden : cases_below(methods_dir(), ""))
    if (golden.info.value("method", "") == method) runs.push_back(std::move(golden));
  check_count("runs of " + method, std::ssize(runs), own);
  return runs;
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
  return Decoder::load(config, weights, "model.", "lm_head", at::dtype(at::kFloat).device(test_device()));
}

void check_last_row(const PureCase& golden, const Decoder& decoder, const Rope* rope) {
  const at::Tensor features = golden["features"];
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
  for (const GoldenCase& golden : runs_with("divprune", 5)) {
    INFO(golden.name);
    const Ids order = golden.integers("selection_order");
    CHECK(divprune_order(golden["image_embeds"].to(test_device()), std::ssize(order)) == order);
  }
}

TEST_CASE("CDPruner's choice") {
  const auto check_case = [](const auto& golden, const at::Tensor& features, const at::Tensor& image) {
    const at::Tensor text = golden["text_embeds"].to(test_device());
    const at::Tensor relevance = cdpruner_relevance(image, text, true);
    compare("relevance", relevance, golden["relevance"], 2e-5);
    const Ids order = golden.integers("selection_order");
    CHECK(cdpruner_order(features, relevance, std::ssize(order)) == order);
    CHECK(sorted(order) == golden.integers("kept_indices"));
  };
  each_pure("cdpruner",
            [&](const PureCase& golden) { check_case(golden, golden["features"], golden["image_embeds"]); });
  for (const GoldenCase& golden : runs_with("cdpruner", 4)) {
    INFO(golden.name);
    const at::Tensor features = golden["image_embeds"].to(test_device());
    check_case(golden, features, golden["clip_image_embeds"].to(test_device()));
    compare("similarity", cosines(unit_rows(features)), golden["similarity"], 2e-5);
  }
}

TEST_CASE("VisionZip's choice") {
  each_pure("visionzip_llava", [](const PureCase& golden) {
    const at::Tensor scores = golden["cls_attention"].sum(0), states = golden["hidden_states"];
    const int64_t n = scores.size(0), dominant = golden.info["dominant"];
    const auto choice = check_visionzip(golden, scores, golden["metric"].narrow(0, 1, n), dominant - 1,
                                        golden.info["contextual"]);
    const at::Tensor patches = states.narrow(0, 1, n);
    const at::Tensor kept = rows_of(patches, choice.dominant);
    compare("selected_hidden", at::cat({states.narrow(0, 0, 1), kept, visionzip_merge(patches, choice)}),
            golden["selected_hidden"], 2e-4);
  });
  each_pure("visionzip_qwen", [](const PureCase& golden) {
    const int64_t n = golden["scores"].size(0);
    const auto choice =
        check_visionzip(golden, golden["scores"], golden["metric"], part_of(n, golden.info["dominant_ratio"]),
                        std::max<int64_t>(part_of(n, golden.info["contextual_ratio"]), 1));
    const Ids keep = merge_indices(choice.dominant, choice.contextual);
    CHECK(keep == golden.integers("kept_indices"));
    const at::Tensor into = at::tensor(choice.contextual, at::kLong).to(test_device());
    const at::Tensor features =
        golden["features"].index_copy(0, into, visionzip_merge(golden["features"], choice));
    compare("kept_features", rows_of(features, keep), golden["kept_features"], 2e-4);
  });
}

TEST_CASE("VScan's choice") {
  each_pure("vscan_llava", [](const PureCase& golden) {
    check_vscan_llava(golden, golden["shallow_attention"].mean(0), golden["deep_attention"].mean(0),
                      golden.info["T"], golden["features"]);
  });
  each_pure("vscan_qwen", [](const PureCase& golden) {
    check_vscan_qwen(golden, golden["local_scores"], golden["global_scores"], golden.info["gh"],
                     golden.info["gw"], golden.info["ratio"], golden["features"]);
  });
}

TEST_CASE("the last row's attention") {
  each_pure("pdrop", [](const PureCase& golden) {
    const Rope rope = rope_tables(at::arange(golden["features"].size(0), test_device()), 8, 10000);
    check_last_row(golden, one_layer(golden, 4, 1e-5), &rope);
  });
  each_pure("vscan_llm_qwen",
            [](const PureCase& golden) { check_last_row(golden, one_layer(golden, 2, 1e-6), nullptr); });
}
