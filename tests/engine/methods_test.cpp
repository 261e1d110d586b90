// What must hold for every pruning method, with the built-in Qwen2.5-VL and the golden data's LLaVA-1.5,
// Qwen3-VL, LLaVA-NeXT and Qwen2.5-VL with videos in float32.
#include <algorithm>
#include <map>

#include "builtin.h"
#include "glimpse/base/check.h"
#include "golden/inputs.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;
using test::row_request;
using test::tiny_engine;
using Ids = std::vector<int64_t>;

namespace {

const std::vector<std::string> kMethods = {"glimpse", "random",     "random(layer=-1)",          "divprune",
                                           "dart",    "cdpruner",   "cdpruner(relevance=words)", "visionzip",
                                           "vscan",   "pyramiddrop"};

constexpr ImageBounds kSmall = {.min_pixels = {}, .max_pixels = 64 * 28 * 28};

// A model and prompts for it, the last with two images or videos.
struct Subject {
  std::string name;
  const Engine& engine;
  std::vector<Prompt> prompts;

  const Prompt& two_media() const { return prompts.back(); }
  PrunerChain chain(const std::string& composition) const {
    return make_pruners(composition, engine.pruner_context());
  }
};

Request two_images(const std::string& prune) {
  Request request = row_request(0, prune);
  request.media.push_back(row_request(24).media[0]);
  request.messages = {test::user("What letter is on the orange square?", 2)};
  return request;
}

Subject builtin() {
  Subject out{"built-in", tiny_engine(), {}};
  for (const Request& request : {row_request(2), row_request(7), row_request(12), two_images("")})
    out.prompts.push_back(out.engine.model().prompt(request.messages, request.media, kSmall));
  return out;
}

test::GoldenCase golden(const std::string& name) {
  return test::GoldenCase(test::golden_dir() / (name + ".json"));
}

std::unique_ptr<Engine> engine_of(const test::GoldenCase& golden, const char* modules_name,
                                  const std::filesystem::path& clip = {}) {
  auto model = test::load_model(golden, at::kFloat, clip);
  const auto modules =
      GlimpseModules::load(golden.folder / modules_name, base_shape(*model), model->decoder().options());
  return std::make_unique<Engine>(std::move(model), modules);
}

// What a golden case asks, whose ids before or after widening are called `ids`.
Prompt prompt_of(const Engine& engine, const std::string& name, const std::string& ids) {
  const test::GoldenCase asked = golden(name);
  return engine.model().prompt(asked.integers(ids), test::Inputs(asked, asked.info["inputs"]).patches);
}

Subject llava() {
  const test::GoldenCase first = golden("llava_tiny/cases/l01_single"),
                         second = golden("llava_tiny/cases/l02_tail_long");
  static const std::unique_ptr<Engine> engine =
      engine_of(first, "nm_main", test::golden_dir() / "methods/clip_full_112");
  Subject out{"LLaVA", *engine, {}};
  std::vector<Patches> both;
  const auto add = [&](Ids ids, const std::vector<Patches>& images) {
    out.prompts.push_back(engine->model().prompt(ids, images));
    out.prompts.back().question = concat("What is in picture ", ids.back(), "?");
  };
  for (const test::GoldenCase* golden : {&first, &second}) {
    const Patches image = test::Inputs(*golden, golden->info["inputs"]).patches[0];
    both.push_back(image);
    Ids ids = golden->integers("input_ids");
    add(ids, {image});
    ids.back() += 1;
    add(ids, {image});
  }
  Ids ids = first.integers("input_ids");
  ids.insert(std::find(ids.begin(), ids.end(), -200), {-200, 77, 78});
  add(ids, both);
  return out;
}

// Whose encoder gives features for later layers.
Subject qwen3() {
  static const std::unique_ptr<Engine> engine =
      engine_of(golden("qwen3_vl_tiny/glimpse/g01_image"), "nm_main");
  Subject out{"Qwen3-VL", *engine, {}};
  at::manual_seed(11);
  std::vector<Patches> pictures;
  for (const Grid& grid : {Grid{1, 16, 20}, Grid{1, 12, 14}, Grid{1, 14, 14}})
    pictures.push_back({at::randn({int64_t{grid.h} * grid.w, 1536}) / 2, grid});
  const Ids image = {563, 566, 564}, begin = {555, 448, 198}, end = {306, 270, 278, 556, 198, 555, 447, 198};
  const auto add = [&](const std::vector<Patches>& images, int64_t word) {
    Ids ids = begin;
    for (size_t i = 0; i < images.size(); ++i) ids.insert(ids.end(), image.begin(), image.end());
    ids.push_back(word);
    ids.insert(ids.end(), end.begin(), end.end());
    out.prompts.push_back(engine->model().prompt(ids, images));
  };
  for (int i = 0; i < 2; ++i) add({pictures[i]}, 302 + i);
  out.prompts.push_back(prompt_of(*engine, "qwen3_vl_tiny/glimpse/g02_video", "input_ids"));
  add({pictures[2], pictures[1]}, 309);
  return out;
}

// Whose pictures have two grids each, and rows between their tokens that are neither these nor text.
Subject next() {
  static const std::unique_ptr<Engine> engine =
      engine_of(golden("llava_next_tiny/glimpse/g01_landscape"), "nm_mistral");
  Subject out{"LLaVA-NeXT", *engine, {}};
  for (const char* name :
       {"glimpse/g01_landscape", "plain/p02_portrait", "plain/p04_extreme", "glimpse/g02_two_images"})
    out.prompts.push_back(prompt_of(*engine, concat("llava_next_tiny/", name), "prompt_ids"));
  return out;
}

// A segment for every temporal slice.
Subject videos() {
  static const std::unique_ptr<Engine> engine =
      engine_of(golden("qwen_tiny_video/glimpse/g01_video"), "nm_main");
  Subject out{"videos", *engine, {}};
  for (const char* name :
       {"glimpse/g01_video", "plain/p03_two_videos", "plain/p02_image_video", "glimpse/g02_video_image"})
    out.prompts.push_back(prompt_of(*engine, concat("qwen_tiny_video/", name), "input_ids"));
  return out;
}

const std::vector<Subject>& subjects() {
  static const std::vector<Subject> all = {builtin(), llava(), qwen3(), next(), videos()};
  return all;
}

struct Run {
  Sequence sequence;
  std::vector<at::Tensor> logits;  // of the prefill and of some decoding steps
  Ids ids;
};

// All together, as one ragged batch.
void finish(const Vlm& model, std::vector<Run>& runs, int steps) {
  std::vector<Sequence*> sequences;
  for (Run& run : runs) sequences.push_back(&run.sequence);
  at::Tensor logits = prefill(model, sequences);
  for (int step = 0;; ++step) {
    Ids next;
    for (size_t i = 0; i < runs.size(); ++i) {
      runs[i].logits.push_back(logits[static_cast<int64_t>(i)]);
      next.push_back(logits[static_cast<int64_t>(i)].argmax().item<int64_t>());
      runs[i].ids.push_back(next.back());
    }
    if (step == steps) return;
    logits = decode_step(model, sequences, next);
  }
}

Run started(const Prompt& prompt, const PrunerChain& chain, const Budget& budget = {}) {
  Run out;
  out.sequence.prompt = prompt;
  out.sequence.pruners = chain;
  out.sequence.budget = budget;
  return out;
}

Run run(const Subject& subject, const Prompt& prompt, const PrunerChain& chain, const Budget& budget = {},
        int steps = 4) {
  std::vector<Run> one(1);
  one[0] = started(prompt, chain, budget);
  finish(subject.engine.model(), one, steps);
  return std::move(one[0]);
}

Ids lengths(const Run& run) {
  Ids out;
  for (const LayerCache& layer : run.sequence.cache.layers) out.push_back(layer.length());
  return out;
}

void same(const Run& got, const Run& expected, double limit) {
  CHECK(got.ids == expected.ids);
  CHECK(got.sequence.kept == expected.sequence.kept);
  CHECK(lengths(got) == lengths(expected));
  CHECK(at::equal(got.sequence.position_ids, expected.sequence.position_ids));
  REQUIRE(got.logits.size() == expected.logits.size());
  for (size_t i = 0; i < got.logits.size(); ++i)
    CHECK(test::difference(got.logits[i], expected.logits[i]) < limit * test::fp32_slack());
}

// Keeps what it was told at each of another method's cuts, with the features it was told.
class Given : public Pruner {
 public:
  Given(std::vector<Cut> cuts, std::map<Moment, Selection> by_time)
      : cuts_(std::move(cuts)), by_time_(std::move(by_time)) {}
  std::string name() const override { return "given"; }
  nlohmann::json settings() const override { return {}; }
  std::vector<Cut> cuts() const override { return cuts_; }
  Selection select(const View&, const Cut& cut, const Budget&) const override {
    return by_time_.at(cut.when());
  }

 private:
  std::vector<Cut> cuts_;
  std::map<Moment, Selection> by_time_;
};

// Notes what another method saw and chose at its cuts.
class Witness : public Pruner {
 public:
  explicit Witness(std::shared_ptr<const Pruner> inner) : inner_(std::move(inner)) {}
  std::string name() const override { return inner_->name(); }
  nlohmann::json settings() const override { return inner_->settings(); }
  std::vector<Cut> cuts() const override { return inner_->cuts(); }
  Taps taps() const override { return inner_->taps(); }
  Selection select(const View& view, const Cut& cut, const Budget& budget) const override {
    seen = view;
    return chosen[cut.when()] = inner_->select(view, cut, budget);
  }
  mutable View seen;
  mutable std::map<Moment, Selection> chosen;

 private:
  std::shared_ptr<const Pruner> inner_;
};

// Keeps everything before the last layer, and notes what is there.
std::shared_ptr<Witness> at_the_end(const Subject& subject) {
  class All : public Given {
   public:
    using Given::Given;
    Selection select(const View& view, const Cut&, const Budget&) const override {
      Selection all;
      for (int64_t i = 0; i < view.count(); ++i) all.keep.push_back(i);
      return all;
    }
  };
  const int64_t last = subject.engine.model().decoder().config().layers - 1;
  return std::make_shared<Witness>(std::make_shared<All>(
      std::vector<Cut>{{.place = Cut::Place::before, .layer = last, .trims_cache = false}},
      std::map<Moment, Selection>()));
}

}  // namespace

TEST_CASE("keeping everything is no pruning") {
  for (const Subject& subject : subjects())
    for (const Prompt& prompt : {subject.prompts[1], subject.two_media()}) {
      const Run base = run(subject, prompt, {});
      for (const std::string& method : kMethods) {
        CAPTURE(subject.name);
        CAPTURE(method);
        same(run(subject, prompt, subject.chain(method), {.keep = 1}), base, 1e-4);
      }
    }
}

TEST_CASE("a budget means the same for every method") {
  for (const Subject& subject : subjects())
    for (const std::string& method : kMethods) {
      CAPTURE(subject.name);
      CAPTURE(method);
      const Prompt& prompt = subject.two_media();
      const auto kept = [&](const Budget& budget) {
        return run(subject, prompt, subject.chain(method), budget, 0).sequence.kept;
      };
      const int64_t total = std::ssize(prompt.visual_rows);
      for (const int64_t count : {0, 1, 2, 9, 40, 100000})
        CHECK(std::ssize(kept({.keep = {}, .count = count})) == std::min(count, total));
      CHECK(std::ssize(kept({.keep = 0.111})) == std::llround(0.111 * static_cast<double>(total)));
      Ids each(2);
      for (const int64_t token : kept({.keep = {}, .count = {}, .counts = {3, 11}}))
        ++each[prompt.segments[place_of(prompt.segments, token).segment].medium];
      CHECK(each == Ids{3, 11});
      CHECK_THROWS_WITH_AS(kept({.keep = {}, .count = {}, .counts = {3}}), "budget: 1 counts for 2 images",
                           Error);
    }
}

TEST_CASE("of several methods the last meets the budget") {
  for (const Subject& subject : subjects())
    for (const char* both :
         {"divprune(keep=0.5)+glimpse", "glimpse+divprune(keep=0.5)",  // glimpse cuts last
          "visionzip(dominant=0.4,contextual=0.1)+glimpse", "pyramiddrop(layers=1+2,keep=0.6+0.4)+glimpse"})
      CHECK(run(subject, subject.prompts[0], subject.chain(both), {.keep = {}, .count = 5}, 0)
                .sequence.kept.size() == 5);
}

TEST_CASE("text is never lost and order is kept") {
  for (const Subject& subject : subjects())
    for (const std::string& method : kMethods)
      for (const Prompt& prompt : {subject.prompts[0], subject.two_media()}) {
        CAPTURE(subject.name);
        CAPTURE(method);
        const auto witness = at_the_end(subject);
        PrunerChain chain = subject.chain(method);
        chain.push_back(witness);
        const Run done = run(subject, prompt, chain, {}, 0);
        const Ids& kept = done.sequence.kept;
        CHECK(std::is_sorted(kept.begin(), kept.end()));
        CHECK(std::adjacent_find(kept.begin(), kept.end()) == kept.end());
        CHECK(!kept.empty());
        CHECK(kept.size() < prompt.visual_rows.size());
        const int64_t others = std::ssize(prompt.ids) - std::ssize(prompt.visual_rows);
        CHECK(witness->seen.text_hidden.size(0) == others - std::ssize(prompt.structure_rows));
        CHECK(done.sequence.cache.layers.back().length() == others + std::ssize(kept));

        const Ids& living = witness->seen.living;
        const bool zipped = method == "visionzip" && subject.engine.model().has_class_token();
        if (zipped)  // class token and dominant tokens, contextual tokens behind
          CHECK(place_of(prompt.segments, living[0]).segment == 0);
        else
          CHECK(living == kept);
        const bool renumbered =
            prompt.position_ids.size(0) == 1 && !method.starts_with("glimpse") && method != "random";
        if (renumbered) {
          CHECK(at::equal(done.sequence.position_ids[0], at::arange(others + std::ssize(kept), at::kLong)));
          continue;
        }
        Ids rows;
        for (int64_t row = 0, visual = 0; row < std::ssize(prompt.ids); ++row) {
          const bool is_visual = visual < std::ssize(prompt.visual_rows) && prompt.visual_rows[visual] == row;
          if (!is_visual || std::binary_search(kept.begin(), kept.end(), visual)) rows.push_back(row);
          visual += is_visual;
        }
        CHECK(at::equal(done.sequence.position_ids, prompt.position_ids.index_select(1, at::tensor(rows))));
      }
}

TEST_CASE("cuts inside the language model leave earlier caches alone") {
  for (const Subject& subject : subjects()) {
    const Prompt& prompt = subject.prompts[0];
    const Run done = run(subject, prompt, subject.chain("pyramiddrop(layers=1+3,keep=0.5+0.1)"), {}, 0);
    const auto total = std::ssize(prompt.visual_rows), text = std::ssize(prompt.ids) - total;
    Ids expected(subject.engine.model().decoder().config().layers, text + total / 10);
    expected[0] = text + total;
    expected[1] = expected[2] = text + total / 2;
    CHECK(lengths(done) == expected);
  }
}

TEST_CASE("a batch of all methods equals its requests one by one, decoding included") {
  std::vector<std::string> mixed = kMethods;
  mixed.insert(mixed.end(), {"none", "visionzip+pyramiddrop", "visionzip+glimpse",
                             "pyramiddrop(layers=1+2,keep=0.6+0.4)+glimpse",
                             "vscan(layers=none,layer_keep=none)+dart(keep=0.1)"});
  for (const Subject& subject : subjects()) {
    std::vector<Run> together(mixed.size());
    const auto prompt = [&](size_t i) { return subject.prompts[i % subject.prompts.size()]; };
    for (size_t i = 0; i < mixed.size(); ++i) together[i] = started(prompt(i), subject.chain(mixed[i]));
    finish(subject.engine.model(), together, 6);
    for (size_t i = 0; i < mixed.size(); ++i) {
      CAPTURE(subject.name);
      CAPTURE(mixed[i]);
      same(together[i], run(subject, prompt(i), subject.chain(mixed[i]), {}, 6), 1e-4);
    }
  }
}

TEST_CASE("the scheduler's answers are those of one request at a time") {
  std::vector<Request> requests;
  for (size_t i = 0; i < kMethods.size(); ++i)
    requests.push_back(row_request(static_cast<int>(i), kMethods[i]));
  requests.push_back(two_images("visionzip+pyramiddrop"));
  for (Request& request : requests) request.bounds = kSmall;
  const std::vector<Answer> together = tiny_engine().ask(std::span<const Request>(requests));
  for (size_t i = 0; i < requests.size(); ++i) {
    CAPTURE(requests[i].prune);
    const Answer alone = tiny_engine().ask(requests[i]);
    CHECK(together[i].ids == alone.ids);
    CHECK(together[i].keep == alone.keep);
    CHECK(together[i].kv_bytes == alone.kv_bytes);
  }
}

TEST_CASE("a composition equals its stages by hand") {
  const std::vector<std::string> early = {"divprune(keep=0.5)", "visionzip(dominant=0.3,contextual=0.2)",
                                          "vscan(keep=0.5,layers=none,layer_keep=none)", "dart(keep=0.4)"};
  const std::vector<std::string> then = {"glimpse(threshold=0.5)", "cdpruner(keep=0.2)",
                                         "pyramiddrop(layers=2+4,keep=0.3+0.1)", "dart(keep=0.1)",
                                         "vscan(keep=0.2,layers=3,layer_keep=0.5)"};
  std::vector<std::pair<std::string, std::string>> pairs = {
      {"pyramiddrop(layers=1+2,keep=0.8+0.6)", "glimpse"},
      {"vscan(keep=0.6,layers=2,layer_keep=0.7)", "glimpse"},
      {"vscan(keep=0.6,layers=1,layer_keep=0.7)", "pyramiddrop(layers=2+3,keep=0.2+0.1)"}};
  for (const std::string& first : early)
    for (const std::string& second : then) pairs.emplace_back(first, second);
  for (const Subject& subject : subjects())
    for (const auto& [first, second] : pairs) {
      CAPTURE(subject.name);
      CAPTURE(first + "+" + second);
      const Prompt& prompt = subject.prompts[2];
      const auto witness = std::make_shared<Witness>(subject.chain(first)[0]);
      const Run alone = run(subject, prompt, {witness}, {}, 0);
      const auto given = std::make_shared<Given>(witness->cuts(), witness->chosen);
      const Run composed = run(subject, prompt, subject.chain(first + "+" + second));
      same(composed, run(subject, prompt, {given, subject.chain(second)[0]}), 1e-4);
      CHECK(composed.sequence.kept.size() < alone.sequence.kept.size());
    }
}

TEST_CASE("cdpruner compares with the question, wherever the image stands") {
  const Subject& subject = subjects()[0];
  const Part image{Part::Kind::image, ""};
  const auto kept = [&](const std::vector<Part>& parts) {
    const Prompt prompt = subject.engine.model().prompt({{"user", parts}}, {row_request(2).media[0]}, kSmall);
    return run(subject, prompt, subject.chain("cdpruner"), {}, 0).sequence.kept;
  };
  const Part red{Part::Kind::text, "What letter is on the red square?"},
      count{Part::Kind::text, "How many circles are there in this picture?"};
  CHECK(kept({image, red}) == kept({red, image}));
  CHECK(kept({image, count}) == kept({count, image}));
  CHECK(kept({image, red}) != kept({image, count}));
}

TEST_CASE("random: one choice for a picture, whatever is asked about it") {
  const Subject& subject = subjects()[1];
  const auto kept = [&](size_t prompt) {
    return run(subject, subject.prompts[prompt], subject.chain("random"), {}, 0).sequence.kept;
  };
  CHECK(kept(0) == kept(1));
  CHECK(kept(0) != kept(2));
}

TEST_CASE("a class token counts, but is no place in the picture") {
  const Subject& subject = subjects()[1];
  const Prompt& prompt = subject.two_media();
  const Run done = run(subject, prompt, subject.chain("visionzip"), {.keep = {}, .count = 20}, 0);
  const Ids& kept = done.sequence.kept;
  CHECK(kept.size() == 20);
  const int64_t total = std::ssize(prompt.visual_rows);
  CHECK(Ids(kept.end() - 2, kept.end()) == Ids{total, total + 1});
  CHECK(kept[17] < total);
  // Scores of a later method are for the pictures' tokens alone.
  const Run scored = run(subject, prompt, subject.chain("visionzip+glimpse"), {}, 0);
  CHECK(scored.sequence.scores.numel() == total);
}
