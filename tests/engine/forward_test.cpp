// The one way through the layers: guide tokens and taps of several methods, features added between layers,
// gradients through cuts, media made of segments.
#include "glimpse/nn/forward.h"

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include "builtin.h"
#include "engine/wrapped_vlm.h"
#include "glimpse/engine/prefill.h"
#include "golden_case.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;
using namespace glimpse::test;
using Ids = std::vector<int64_t>;

namespace {

PrunerChain chain_of(const std::string& composition) {
  return make_pruners(composition, tiny_engine().pruner_context());
}

Sequence sequence_of(const Prompt& prompt, PrunerChain pruners) {
  Sequence sequence;
  sequence.prompt = prompt;
  sequence.pruners = std::move(pruners);
  return sequence;
}

Prompt row_prompt(int row) {
  const Request request = row_request(row);
  return tiny_engine().model().prompt(request.messages, request.media, {});
}

void run(const Vlm& model, Sequence& sequence) {
  Sequence* const one[] = {&sequence};
  prefill(model, one);
}

// Reads the last row's attention at a layer and keeps everything.
class Reader : public Pruner {
 public:
  explicit Reader(bool log_softmax) : log_softmax_(log_softmax) {}
  std::string name() const override { return "reader"; }
  nlohmann::json settings() const override { return {}; }
  std::vector<Cut> cuts() const override { return {{Cut::Place::after, 2, true}}; }
  Taps taps() const override {
    Taps taps;
    taps.attention_layers = {1, 2};
    taps.log_softmax = log_softmax_;
    return taps;
  }
  Selection select(const View& view, const Cut&, const Budget&) const override {
    seen = view.attention;
    Selection all;
    for (int64_t i = 0; i < view.count(); ++i) all.keep.push_back(i);
    return all;
  }
  mutable at::Tensor seen;

 private:
  const bool log_softmax_;
};

// Keeps the given tokens before a layer, with their positions, and notes what that layer takes.
class Given : public Pruner {
 public:
  explicit Given(Ids keep, int64_t layer = 0) : keep_(std::move(keep)), layer_(layer) {}
  std::string name() const override { return "given"; }
  nlohmann::json settings() const override { return {}; }
  std::vector<Cut> cuts() const override { return {{Cut::Place::before, layer_}}; }
  Selection select(const View& view, const Cut&, const Budget&) const override {
    seen = view.hidden.clone();
    return {keep_, {}, {}};
  }
  mutable at::Tensor seen;

 private:
  const Ids keep_;
  const int64_t layer_;
};

Ids every(int64_t step, int64_t count) {
  Ids out;
  for (int64_t i = 0; i < count; i += step) out.push_back(i);
  return out;
}

// The last row's logits of a prompt of which only `keep` enter the language model, with `added` on the visual
// rows before layer 1: straight through the layers, with none of the engine's lanes.
at::Tensor by_hand(const Vlm& model, const Prompt& prompt, const Ids& keep, const at::Tensor& added) {
  const at::Tensor rows = embed_prompt(model, prompt, {}).rows;
  Ids stay, visual;
  for (int64_t row = 0, token = 0; row < std::ssize(prompt.ids); ++row) {
    const bool is_visual = token < std::ssize(prompt.visual_rows) && prompt.visual_rows[token] == row;
    if (!is_visual || std::binary_search(keep.begin(), keep.end(), token)) {
      if (is_visual) visual.push_back(std::ssize(stay));
      stay.push_back(row);
    }
    token += is_visual;
  }
  KvCache cache(model.decoder().config().layers);
  const at::Tensor index = at::tensor(stay, at::kLong);
  const RaggedBatch batch{{{&cache, std::ssize(stay)}},
                          model.rope(prompt.position_ids.index_select(1, index))};
  LayerHooks hooks;
  hooks.before = [&](int64_t layer, at::Tensor& x, RaggedBatch&) {
    if (layer == 1) x = x.index_add(0, at::tensor(visual), added.index_select(0, at::tensor(keep)));
  };
  const at::Tensor x = Forward(model.decoder(), rows.index_select(0, index), batch, hooks).run();
  return model.decoder().logits(x.narrow(0, x.size(0) - 1, 1));
}

}  // namespace

TEST_CASE("guide tokens of two methods do not see each other") {
  for (const int row : {0, 3, 9}) {
    CAPTURE(row);
    // The first keeps everything; the second then decides as it does alone.
    Sequence alone = sequence_of(row_prompt(row), chain_of("glimpse")),
             both = sequence_of(row_prompt(row), chain_of("glimpse(threshold=0)+glimpse"));
    for (Sequence* sequence : {&alone, &both}) run(tiny_engine().model(), *sequence);
    CHECK(both.kept == alone.kept);
    CHECK(alone.kept.size() < alone.prompt.visual_rows.size());
    CHECK(difference(both.scores, alone.scores) < 1e-4 * fp32_slack());
    CHECK(at::equal(both.position_ids, alone.position_ids));
    for (size_t l = 0; l < alone.cache.layers.size(); ++l) {
      REQUIRE(both.cache.layers[l].length() == alone.cache.layers[l].length());
      CHECK(difference(both.cache.layers[l].keys(), alone.cache.layers[l].keys()) < 1e-4 * fp32_slack());
    }
  }
}

TEST_CASE("a tap reads its own method's row, whatever it is composed with") {
  for (const bool log_softmax : {false, true}) {
    const auto alone = std::make_shared<Reader>(log_softmax),
               composed = std::make_shared<Reader>(log_softmax);
    PrunerChain both;
    both.push_back(composed);
    both.push_back(chain_of("glimpse")[0]);
    Sequence first = sequence_of(row_prompt(0), PrunerChain(1, alone)),
             second = sequence_of(row_prompt(0), both);
    run(tiny_engine().model(), first);
    run(tiny_engine().model(), second);
    REQUIRE(alone->seen.size(1) == 2 * tiny_engine().model().decoder().config().heads);
    CHECK(difference(alone->seen, composed->seen) < 1e-4 * fp32_slack());
    // and glimpse decides as it does alone
    Sequence third = sequence_of(row_prompt(0), chain_of("glimpse"));
    run(tiny_engine().model(), third);
    CHECK(second.kept == third.kept);
    CHECK(difference(second.scores, third.scores) < 1e-4 * fp32_slack());
  }
}

TEST_CASE("features are added to the visual tokens before their layer; cuts, blocks and batches carry them") {
  const Prompt prompt = row_prompt(0);
  const int64_t n = std::ssize(prompt.visual_rows), d = tiny_engine().model().decoder().config().hidden_size;
  at::manual_seed(3);
  WrappedVlm model(tiny_engine().model());
  const at::Tensor added = at::randn({n, d}).to(test_device());
  model.given.additions = {at::Tensor(), added};
  const Ids keep = every(3, n);
  const at::NoGradGuard no_grad;
  const at::Tensor expected = by_hand(model, prompt, keep, added);
  CHECK(difference(expected, by_hand(model, prompt, keep, at::zeros_like(added))) > 1e-2);
  for (const int64_t block : {2048, 50}) {
    PrefillBatch batch(model, nullptr, block);
    Sequence one = sequence_of(prompt, {std::make_shared<Given>(keep)}),
             other = sequence_of(prompt, {std::make_shared<Given>(Ids{0, 5})});
    batch.add(other);
    batch.add(one);
    while (!batch.done()) CHECK(batch.step().empty());
    CHECK(difference(batch.finish()[1].unsqueeze(0), expected) < 1e-3 * fp32_slack());
  }
  // A method that cuts before the layer sees what the layer takes: with the features.
  const auto look = [&](const at::Tensor& features) {
    model.given.additions = {at::Tensor(), features};
    const auto looking = std::make_shared<Given>(keep, 1);
    Sequence sequence = sequence_of(prompt, PrunerChain(1, looking));
    run(model, sequence);
    return looking->seen;
  };
  CHECK(difference(look(added) - look(at::zeros_like(added)), added) < 1e-4 * fp32_slack());
  model.given.additions = {at::Tensor(), added};
  // A prefix from the cache: the features are in it already.
  PrefixCache cache(size_t{1} << 30);
  const int64_t layers = tiny_engine().model().decoder().config().layers;
  at::Tensor first;
  for (int time = 0; time < 2; ++time) {
    PrefillBatch batch(model, &cache);
    Sequence sequence = sequence_of(prompt, chain_of("glimpse"));
    sequence.prefix_key = prefix_key(sequence, *prefix_end(prompt, sequence.pruners, layers), 0);
    batch.add(sequence);
    while (!batch.done()) CHECK(batch.step().empty());
    const at::Tensor logits = batch.finish();
    CHECK((sequence.cached_tokens > 0) == (time == 1));
    if (time == 0)
      first = logits;
    else
      CHECK(difference(logits, first) < 1e-3 * fp32_slack());
  }
}

TEST_CASE("a prefill with gradients prunes, and its gradients are those of the kept rows alone") {
  register_emulated_device();  // autograd serves the devices that are known when it is first used
  const std::unique_ptr<Engine> engine =
      Engine::load({.model = tiny_dir() / "model", .dtype = "fp32", .device = device_name()});
  Vlm& model = const_cast<Vlm&>(engine->model());
  std::vector<at::Tensor> weights;
  model.mutable_decoder().visit_linears([&](const std::string& name, Linear& layer) {
    if (name.ends_with("0.self_attn.k_proj") || name.ends_with("3.mlp.down_proj"))
      weights.push_back(layer.weight.requires_grad_(true));
  });
  REQUIRE(weights.size() == 2);
  const Prompt prompt = row_prompt(0);
  const Ids keep = every(4, std::ssize(prompt.visual_rows));
  const int64_t layers = model.decoder().config().layers;
  const auto gradients = [&](const at::Tensor& logits) {
    return torch::autograd::grad({logits.log_softmax(1).narrow(1, 0, 50).sum()}, weights);
  };
  const at::AutoGradMode on(true);
  const at::Tensor none =
      at::zeros({std::ssize(prompt.visual_rows), model.decoder().config().hidden_size}).to(test_device());
  const auto expected = gradients(by_hand(model, prompt, keep, none));

  const auto pruned = [&](int64_t layer, int64_t last) {
    PrefillBatch batch(model);
    batch.record_gradients();
    Sequence sequence = sequence_of(prompt, {std::make_shared<Given>(keep, layer)});
    batch.add(sequence);
    while (!batch.done()) CHECK(batch.step().empty());
    const at::Tensor logits = batch.finish(last);
    CHECK(sequence.kept == keep);
    return logits;
  };
  const auto got = gradients(pruned(0, 1));
  for (size_t i = 0; i < weights.size(); ++i) {
    CHECK(expected[i].abs().max().item<double>() > 1e-4);
    CHECK(difference(got[i], expected[i]) < 1e-3 * expected[i].abs().max().item<double>() * fp32_slack());
  }
  CHECK(pruned(0, 5).size(0) == 5);

  // A cut in the middle of the layers against finite differences.
  const at::Tensor gradient = gradients(pruned(layers / 2, 1))[0];
  const at::Tensor direction = gradient / gradient.norm();
  const auto loss = [&](double step) {
    const at::NoGradGuard no_grad;
    at::Tensor weight = weights[0];
    weight.add_(direction, step);
    const double value =
        pruned(layers / 2, 1).log_softmax(1).narrow(1, 0, 50).sum(at::kDouble).item<double>();
    weight.sub_(direction, step);
    return value;
  };
  constexpr double kStep = 2e-2;
  const double slope = (loss(kStep) - loss(-kStep)) / (2 * kStep);
  CHECK(slope == doctest::Approx(gradient.norm().item<double>()).epsilon(0.02));
}

TEST_CASE(
    "a medium of two frames and two tiles each, separated by rows of its own, is pruned like an image") {
  const Engine& engine = tiny_engine();
  WrappedVlm model(engine.model());
  const DecoderConfig& config = engine.model().decoder().config();
  constexpr int64_t kRows = 3, kCols = 4, kTile = kRows * kCols, kSegments = 4, kAll = kSegments * kTile;
  // [text] tile | tile | tile | tile [text]: each `|` a row of structure; then an image of one segment.
  const Prompt text = engine.model().prompt({user("What is on the orange square?")}, {}, {});
  Prompt prompt = text;
  prompt.ids.clear();
  prompt.question_rows.clear();
  const Ids before(text.ids.begin(), text.ids.begin() + 4), after(text.ids.begin() + 4, text.ids.end());
  prompt.ids = before;
  const auto add_segment = [&](Segment segment) {
    segment.first = std::ssize(prompt.visual_rows);
    for (int64_t i = 0; i < segment.count(); ++i) {
      prompt.visual_rows.push_back(std::ssize(prompt.ids));
      prompt.ids.push_back(0);
    }
    prompt.segments.push_back(segment);
  };
  for (int64_t i = 0; i < kSegments; ++i) {
    if (i > 0) {
      prompt.structure_rows.push_back(std::ssize(prompt.ids));
      prompt.ids.push_back(0);
    }
    const double half = static_cast<double>(i % 2) / 2;
    add_segment({kRows, kCols, 0, {half, 0, half + 0.5, 1}, 0, static_cast<double>(i / 2)});
  }
  prompt.ids.push_back(before[0]);
  add_segment({2, 2, 0, whole_image, 1, 0});
  prompt.ids.insert(prompt.ids.end(), after.begin(), after.end());
  const int64_t rows = std::ssize(prompt.ids), visual = std::ssize(prompt.visual_rows);
  REQUIRE(visual == kAll + 4);
  prompt.position_ids = at::arange(rows, at::kLong).expand({3, -1}).contiguous();
  prompt.next_position = rows;
  for (int64_t i = 5; i < std::ssize(after); ++i) prompt.question_rows.push_back(i);
  CHECK(media_count(prompt.segments) == 2);
  CHECK(place_of(prompt.segments, 2 * kTile + kCols + 1).segment == 2);

  at::manual_seed(11);
  const at::NoGradGuard no_grad;
  const auto random = [&](int64_t n, int64_t width) {
    return (0.1 * at::randn({n, width})).to(test_device());
  };
  model.given.embeds = random(visual, config.hidden_size);
  model.given.structure = random(kSegments - 1, config.hidden_size);
  for (size_t i = 0; i < chain_of("glimpse")[0]->taps().vision_layers.size(); ++i)
    model.given.states.push_back(random(visual, engine.model().vision_width()));
  model.given.windows = Ids(visual, 0);

  at::Tensor whole;  // hidden states after the first layer
  {
    Sequence sequence = sequence_of(prompt, {});
    Sequence* const one[] = {&sequence};
    prefill(model, one, [&](int64_t layer, const at::Tensor& hidden) {
      if (layer == 0) whole = hidden.clone();
    });
    CHECK(sequence.cache.layers[0].length() == rows);
  }
  // The separators' embeddings matter.
  const VisionOutput kept_output = model.given;
  model.given.structure = model.given.structure * 2;
  Sequence changed = sequence_of(prompt, {});
  Sequence* const other[] = {&changed};
  prefill(model, other, [&](int64_t layer, const at::Tensor& hidden) {
    if (layer != 0) return;
    CHECK(difference(hidden[prompt.structure_rows[0]], whole[prompt.structure_rows[0]]) > 1e-3);
    CHECK(difference(hidden[prompt.visual_rows[0]], whole[prompt.visual_rows[0]]) < 1e-5 * fp32_slack());
  });
  model.given = kept_output;

  for (const char* method :
       {"glimpse", "random", "divprune", "dart", "pyramiddrop", "reference", "random(layer=-1)"}) {
    CAPTURE(std::string(method));
    Sequence sequence = sequence_of(prompt, chain_of(method));
    if (std::string(method) == "reference") {
      // The right half of the video, and of the image only the token that must stay.
      sequence.boxes = {{{0.55, 0.1, 0.95, 0.9}}, {}};
    } else {
      sequence.budget.counts = {10, 3};
    }
    Sequence* const one[] = {&sequence};
    prefill(model, one);
    int64_t of_video = 0;
    for (const int64_t token : sequence.kept) of_video += token < kAll;
    if (std::string(method) == "reference") {
      for (const int64_t token : sequence.kept)
        if (token < kAll) CHECK(place_of(prompt.segments, token).segment % 2 == 1);
      CHECK(of_video == 2 * kTile);
      CHECK(std::ssize(sequence.kept) == 2 * kTile + 1);
    } else {
      CHECK(of_video == 10);
      CHECK(std::ssize(sequence.kept) == 13);
    }
    // Text and separators stay.
    CHECK(sequence.cache.layers.back().length() == rows - visual + std::ssize(sequence.kept));
  }
}
