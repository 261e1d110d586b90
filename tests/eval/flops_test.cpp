// Formulas against the products that really run.
#include "glimpse/eval/flops.h"

#include "builtin.h"
#include "glimpse/eval/accounting.h"
#include "glimpse/nn/flop_count.h"
#include "golden/inputs.h"
#include "io/scratch.h"

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
  for (const std::string method :
       {"none", "glimpse", "least", "random", "random(layer=-1)", "divprune", "cdpruner", "dart", "visionzip",
        "vscan", "pyramiddrop", "pyramiddrop(layers=2,keep=0.2)", "divprune(keep=0.5)+glimpse(threshold=0.5)",
        "visionzip(dominant=0.3,contextual=0.2)+pyramiddrop",
        "vscan(layers=none,layer_keep=none)+dart(keep=0.1)"})
    for (const double keep : {0.0, 0.05, 0.111, 0.4, 1.0}) {
      if (method == "least" && keep == 0) continue;
      CAPTURE(method);
      CAPTURE(keep);
      Request request = row_request(3, method);
      if (keep > 0 && method != "none") request.budget.keep = keep;
      const Counted counted = ask(request);
      const PrunerChain chain = make_pruners(method, tiny_engine().pruner_context());
      const AnswerFlops formula = accounting().of(counted.answer, chain, request.budget);
      check_near(counted.operations, formula.total());
      // The encoder, most of this model's work and the same for all, must not hide the rest.
      check_near(counted.operations - *formula.vision, formula.total() - *formula.vision);
    }
}

TEST_CASE("operations stage by stage") {
  const Request request = row_request(5, "none");
  const Engine& engine = tiny_engine();
  const Prompt prompt = engine.model().prompt(request.messages, request.images, request.bounds);
  const PrunerChain none, glimpse = make_pruners("glimpse", engine.pruner_context());
  const AnswerFlops formula = accounting().of(engine.ask(request), none, {});

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
  check_near(with_prune - whole, accounting().of(engine.ask(all), glimpse, all.budget).prune, 0.02);

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
  const VisionShape shape = VisionShape::of(folder / "base", config);
  const int side = 112 / 14;
  Patches patches;
  patches.pixel_values = at::rand({side * side, 3 * 14 * 14});
  patches.grid = {1, side, side};
  FlopCount count;
  model->encode({patches}, {});
  check_near(static_cast<double>(count.take()), vision_flops(shape, patches.grid), 1e-3);
  CHECK(shape.patch * shape.merge == 14);
}

TEST_CASE("CDPruner with CLIP's text tower") {
  const auto folder = test::golden_dir() / "methods/llava_cdpruner";
  const test::Scratch scratch;
  nlohmann::json config = read_json(test::golden_dir() / "llava_tiny/base/config.json");
  config["mm_vision_tower"] = (test::golden_dir() / "methods/clip_full_112").string();
  scratch.write("config.json", config.dump());
  std::filesystem::create_symlink(test::golden_dir() / "llava_tiny/base/model.safetensors",
                                  scratch / "model.safetensors");
  const auto engine = Engine::load({.model = scratch / "", .dtype = "fp32"});
  const Accounting formulas(*engine, *open_model_dir(scratch / ""));
  for (const test::GoldenCase& golden : test::golden_cases(folder)) {
    CAPTURE(golden.name);
    Sequence sequence;
    Patches patches;
    patches.pixel_values = at::rand({64, 3 * 14 * 14});
    patches.grid = {1, 8, 8};
    sequence.prompt = engine->model().prompt(golden.integers("input_ids"), {patches});
    sequence.prompt.question = golden.info["text"];
    sequence.pruners = make_pruners("cdpruner", engine->pruner_context());
    Sequence* const sequences[] = {&sequence};
    engine->model().encode_text("loads it");
    FlopCount count;
    prefill(engine->model(), sequences);
    const auto counted = static_cast<double>(count.take());
    Answer answer;
    answer.images = sequence.prompt.images;
    answer.prompt_tokens = std::ssize(sequence.prompt.ids);
    answer.visual_tokens = 64;
    answer.kept_tokens = std::ssize(sequence.kept);
    answer.question_rows = sequence.question_rows;
    const AnswerFlops formula = formulas.of(answer, sequence.pruners, {});
    check_near(counted, formula.total());
    check_near(counted - *formula.vision - formula.prefill, formula.prune);
  }
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
