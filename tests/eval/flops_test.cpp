// Formulas against the products that really run.
#include "glimpse/eval/flops.h"

#include "builtin.h"
#include "glimpse/eval/accounting.h"
#include "glimpse/nn/flop_count.h"
#include "golden/inputs.h"
#include "io/scratch.h"
#include "sliding_model.h"

using namespace glimpse;
using test::row_request;
using test::tiny_engine;

namespace {

// Both within `limit` of each other.
void check_near(double counted, double formula, double limit = 0.02) {
  CAPTURE(counted);
  CAPTURE(formula);
  CHECK(counted > 0);
  CHECK(std::abs(counted - formula) <= limit * counted);
}

const Accounting& accounting() {
  static const Accounting own(tiny_engine(), *open_model_dir(test::tiny_dir() / "model"));
  return own;
}

struct Counted {
  Answer answer;
  double operations;
};

Counted ask(const Request& request) {
  FlopCount count;
  Answer answer = tiny_engine().ask(request);
  return {std::move(answer), static_cast<double>(count.take())};
}

}  // namespace

TEST_CASE("operations of whole answers, for every method") {
  std::vector<std::string> methods = {"none",
                                      "random(layer=-1)",
                                      "pyramiddrop(layers=2,keep=0.2)",
                                      "divprune(keep=0.5)+glimpse(threshold=0.5)",
                                      "scout(encoder=2,threshold=1,floor=0.3)+glimpse",
                                      "visionzip(dominant=0.3,contextual=0.2)+pyramiddrop",
                                      "vscan(layers=none,layer_keep=none)+dart(keep=0.1)"};
  for (const PrunerInfo& info : known_pruners(tiny_engine().pruner_context()))
    if (info.budgeted != PrunerInfo::Budgeted::never) methods.push_back(info.name);
  CHECK(methods.size() >= 15);
  for (const std::string& method : methods)
    for (const double keep : {0.0, 0.05, 0.111, 0.4, 1.0}) {
      if (method == "least" && keep == 0) continue;
      CAPTURE(method);
      CAPTURE(keep);
      Request request = row_request(3, method);
      if (keep > 0 && method != "none") request.budget.keep = keep;
      const Counted counted = ask(request);
      const PrunerChain chain = make_pruners(method, tiny_engine().pruner_context());
      const AnswerFlops formula = accounting().of(counted.answer, chain);
      check_near(counted.operations, formula.total());
      // The encoder, most of this model's work and the same for all, must not hide the rest.
      check_near(counted.operations - *formula.vision, formula.total() - *formula.vision);
    }
}

TEST_CASE("layers with a sliding window") {
  if (!test::test_device().is_cpu()) return;
  const test::SlidingModel folder;
  const auto engine = Engine::load(
      {.model = folder.dir(), .new_modules = {(test::tiny_dir() / "new_modules").string()}, .dtype = "fp32"});
  const Accounting sliding(*engine, *open_model_dir(folder.dir()));
  for (const char* method : {"none", "glimpse", "random(keep=0.5,layer=-1)+glimpse"}) {
    CAPTURE(method);
    const Request request = row_request(3, method);
    FlopCount count;
    const Answer answer = engine->ask(request);
    const auto counted = static_cast<double>(count.take());
    const PrunerChain chain = make_pruners(method, engine->pruner_context());
    const AnswerFlops formula = sliding.of(answer, chain);
    check_near(counted - *formula.vision, formula.total() - *formula.vision, 2e-3);
    const AnswerFlops all = accounting().of(answer, chain);
    CHECK(formula.prefill < all.prefill);
    CHECK(formula.decode < all.decode);
  }
}

TEST_CASE("operations stage by stage") {
  const Request request = row_request(5, "none");
  const Engine& engine = tiny_engine();
  const Prompt prompt = engine.model().prompt(request.messages, request.media, request.bounds);
  const PrunerChain none, glimpse = make_pruners("glimpse", engine.pruner_context());
  const AnswerFlops formula = accounting().of(engine.ask(request), none);

  FlopCount count;
  engine.model().encode(prompt.patches, {});
  const double vision = static_cast<double>(count.take());
  check_near(vision, formula.vision.value(), 1e-3);

  Sequence sequence;
  sequence.prompt = prompt;
  Sequence* const sequences[] = {&sequence};
  prefill(engine.model(), sequences);
  const double whole = static_cast<double>(count.take());
  check_near(whole - vision, formula.prefill, 1e-3);

  // What pruning adds: a run that keeps everything does all of it and saves nothing.
  Sequence pruned;
  pruned.prompt = prompt;
  pruned.pruners = glimpse;
  pruned.budget.keep = 1;
  Sequence* const more[] = {&pruned};
  prefill(engine.model(), more);
  Request all = row_request(5, "glimpse");
  all.budget.keep = 1;
  const double with_prune = static_cast<double>(count.take());
  check_near(with_prune - whole, accounting().of(engine.ask(all), glimpse).prune, 0.02);

  // Decoding: the whole answer less its prefill.
  const Counted answered = ask(request);
  check_near(answered.operations - whole, formula.decode, 1e-3);
}

TEST_CASE("the encoder of LLaVA") {
  const auto folder = test::golden_dir() / "llava_tiny";
  const test::GoldenCase golden(test::golden_cases(folder / "cases")[0]);
  const auto model = test::load_model(golden, at::kFloat);
  nlohmann::json config = read_json(folder / "base/config.json");
  config["mm_vision_tower"] = (folder / "vision_tower").string();
  const VisionShape shape = vision_shape(config, folder / "base");
  const int side = 112 / 14;
  Patches patches;
  patches.pixel_values = at::rand({side * side, 3 * 14 * 14});
  patches.grid = {1, side, side};
  FlopCount count;
  model->project(model->encode({patches}, {}).embeds);
  check_near(static_cast<double>(count.take()), vision_flops(shape, patches.grid), 1e-3);
  CHECK(shape.patch * shape.merge == 14);
}

TEST_CASE("the encoder of LLaVA-NeXT, a frame for each tile") {
  const auto folder = test::golden_dir() / "llava_next_tiny";
  for (const char* name :
       {"plain/p01_landscape", "plain/p03_square", "plain/p04_extreme", "plain/p12_tall"}) {
    CAPTURE(name);
    const test::GoldenCase golden(folder / concat(name, ".json"));
    const auto model = test::load_model(golden, at::kFloat);
    const auto base = folder / golden.info["model"].get<std::string>();
    const VisionShape shape = vision_shape(read_json(base / "config.json"), base);
    const test::Inputs inputs(golden, golden.info["inputs"]);
    const Prompt prompt = model->prompt(golden.integers("prompt_ids"), inputs.patches);
    double expected = 0;
    int tiles = 0;
    for (const Segment& segment : prompt.segments) {
      const Grid frames = shape.frames(segment.rows, segment.cols);
      const int64_t padding = int64_t{frames.t} * frames.h * frames.w - segment.count();
      expected += vision_flops(shape, frames) - 2.0 * static_cast<double>(padding) * shape.projector;
      tiles += frames.t;
    }
    CHECK(tiles == inputs.patches[0].grid.t);
    FlopCount count;
    model->project(model->encode(inputs.patches, {}).embeds);
    check_near(static_cast<double>(count.take()), expected, 1e-3);
  }
}

namespace {

// The tiny LLaVA of the golden cases beside an encoder that may be a whole CLIP, with pruning modules.
class LlavaAsked {
 public:
  explicit LlavaAsked(const std::filesystem::path& tower) {
    const auto folder = test::golden_dir() / "llava_tiny";
    const auto copy = [&](const std::string& from, const std::string& to, const char* weights) {
      nlohmann::json config = read_json(folder / from / "config.json");
      config["mm_vision_tower"] = tower.string();
      scratch_.write(to + "config.json", config.dump());
      std::filesystem::create_symlink(folder / from / weights, scratch_ / (to + weights));
    };
    copy("base", "", "model.safetensors");
    copy("nm_main", "modules/", "new_modules_gp.pt");
    engine_ = Engine::load(
        {.model = scratch_ / "", .new_modules = {(scratch_ / "modules").string()}, .dtype = "fp32"});
    accounting_.emplace(*engine_, *open_model_dir(scratch_ / ""));
    if (engine_->model().text_tower()) engine_->model().encode_text("loads it");
  }

  // Prefill and then `steps` tokens, counted and by formula.
  void check(const test::GoldenCase& golden, const std::string& method, const Budget& budget, int steps) {
    CAPTURE(golden.name);
    CAPTURE(method);
    const Vlm& model = engine_->model();
    Sequence sequence;
    Patches patches;
    patches.pixel_values = at::rand({64, 3 * 14 * 14});
    patches.grid = {1, 8, 8};
    sequence.prompt = model.prompt(golden.integers("input_ids"), {patches});
    if (golden.info.contains("text")) sequence.prompt.question = golden.info["text"];
    sequence.pruners = make_pruners(method, engine_->pruner_context());
    sequence.budget = budget;
    sequence.next_position = sequence.prompt.next_position;
    Sequence* const sequences[] = {&sequence};
    FlopCount count;
    prefill(model, sequences);
    const auto prefilled = static_cast<double>(count.take());
    for (int step = 0; step < steps; ++step) decode_step(model, sequences, {5});
    const auto decoded = static_cast<double>(count.take());

    Answer answer;
    answer.segments = sequence.prompt.segments;
    answer.prompt_tokens = std::ssize(sequence.prompt.ids);
    answer.visual_tokens = 64;
    answer.kept_tokens = std::ssize(sequence.kept);
    answer.left = sequence.left;
    answer.question_rows = sequence.question_rows;
    answer.finish_reason = "length";
    answer.ids.assign(steps + 1, 5);
    const AnswerFlops formula = accounting_->of(answer, sequence.pruners);
    check_near(prefilled, *formula.vision + formula.prefill + formula.prune);
    // The encoder is most of it and the same for all.
    check_near(prefilled - *formula.vision, formula.prefill + formula.prune);
    check_near(decoded, formula.decode, 1e-3);
    if (method == "cdpruner") check_near(prefilled - *formula.vision - formula.prefill, formula.prune);
  }

 private:
  const test::Scratch scratch_;
  std::unique_ptr<Engine> engine_;
  std::optional<Accounting> accounting_;
};

}  // namespace

TEST_CASE("every method on LLaVA") {
  LlavaAsked llava(test::golden_dir() / "llava_tiny/vision_tower");
  const test::GoldenCase golden(test::golden_cases(test::golden_dir() / "llava_tiny/cases")[0]);
  for (const char* method :
       {"none", "glimpse", "random", "random(layer=-1)", "divprune", "cdpruner(relevance=words)", "dart",
        "visionzip", "vscan", "vscan(layers=2+3,layer_keep=0.5+0.5)",
        "vscan(keep=0.63,window=2,layers=2,layer_keep=0.5)", "pyramiddrop(layers=1+2+3)",
        "divprune(keep=0.5)+glimpse", "vscan+pyramiddrop(layers=2,keep=0.1)",
        "visionzip(dominant=20,contextual=6)", "visionzip(dominant=0.3,contextual=0.1)+glimpse"})
    for (const double keep : {0.0, 0.05, 0.222, 1.0}) {
      CAPTURE(keep);
      Budget budget;
      if (keep > 0) budget.keep = keep;
      llava.check(golden, method, budget, 5);
    }
}

TEST_CASE("CDPruner with CLIP's text tower") {
  LlavaAsked llava(test::golden_dir() / "methods/clip_full_112");
  for (const test::GoldenCase& golden : test::golden_cases(test::golden_dir() / "methods/llava_cdpruner"))
    llava.check(golden, "cdpruner", {}, 2);
}

TEST_CASE("nothing is counted unless asked") {
  const FlopCount first;
  {
    FlopCount count;
    flop_count::add(5);
    CHECK(count.take() == 5);
    CHECK(count.take() == 0);
  }
  flop_count::add(7);
  CHECK(flop_count::sum == 0);
}

TEST_CASE("formulas at the 7B's published shape") {
  // 28 layers, 3584 wide, 28 query and 4 key heads of 128, 18944 inside: 6.53 G parameters in the layers.
  DecoderConfig c;
  c.hidden_size = 3584;
  c.intermediate_size = 18944;
  c.layers = 28;
  c.heads = 28;
  c.kv_heads = 4;
  c.head_dim = 128;
  c.vocab_size = 152064;
  CHECK(c.layers * layer_weights(c) == 6525288448.0);
  CHECK(kv_row_bytes(c) == 57344);
  // A thousand rows: two operations per weight and row, and 4 x 3584 per pair in each layer.
  CHECK(prefill_flops(c, 1000) ==
        doctest::Approx(2000 * 6525288448.0 + 28 * 4.0 * 3584 * 500500 + 2.0 * 3584 * 152064));
}

TEST_CASE("the encoder of Qwen3-VL, with what it gives for later layers") {
  const auto folder = test::golden_dir() / "qwen3_vl_tiny/base";
  const auto model = load_vlm(folder, {.dtype = at::kFloat});
  const VisionShape shape = vision_shape(read_json(folder / "config.json"), folder);
  const Grid grid{1, 8, 12};
  FlopCount count;
  model->encode({{at::rand({grid.h * grid.w, shape.patch_values}), grid}}, {});
  check_near(static_cast<double>(count.take()), vision_flops(shape, grid), 1e-3);
  CHECK(shape.patch * shape.merge == 32);
}
