// Answers with image prefixes from a cache are those without; the cache keeps to its bounds.
#include <thread>

#include "builtin.h"
#include "glimpse/base/check.h"
#include "glimpse/engine/prefill.h"
#include "glimpse/engine/session.h"
#include "golden/inputs.h"
#include "sliding_model.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;
using test::row_request;
using test::tiny_engine;

namespace {

std::unique_ptr<Engine> caching_engine(size_t cache_mb = 256,
                                       const std::filesystem::path& model = test::tiny_dir() / "model") {
  return Engine::load({.model = model,
                       .new_modules = {(test::tiny_dir() / "new_modules").string()},
                       .dtype = "fp32",
                       .device = test::device_name(),
                       .cache_mb = cache_mb});
}

void same_answer(const Answer& got, const Answer& expected) {
  CHECK(got.ids == expected.ids);
  CHECK(got.text == expected.text);
  CHECK(got.finish_reason == expected.finish_reason);
  CHECK(got.keep == expected.keep);
  CHECK(got.kv_bytes == expected.kv_bytes);
  REQUIRE(got.scores.size() == expected.scores.size());
  for (size_t i = 0; i < got.scores.size(); ++i)
    CHECK(std::abs(got.scores[i] - expected.scores[i]) < 1e-5 * test::fp32_slack());
}

Request asked(Request request, const std::string& question) {
  request.messages.back().parts.back().text = question;
  return request;
}

// An entry of `kib` KiB.
std::shared_ptr<const ImagePrefix> entry(int64_t kib) {
  auto prefix = std::make_shared<ImagePrefix>();
  prefix->hidden = at::zeros({kib, 256});
  return prefix;
}

size_t memory_of(const LayerCache& layer) {
  return layer.length() == 0 ? 0 : layer.keys().storage().nbytes() + layer.values().storage().nbytes();
}

}  // namespace

TEST_CASE("further questions about an image: the same answers, scores to 1e-5") {
  for (const char* prune :
       {"none", "glimpse", "divprune", "pyramiddrop", "visionzip", "vscan", "dart", "cdpruner", "random",
        "random(keep=0.5,layer=-1)", "divprune(keep=0.5)+glimpse(threshold=0.3)",
        "visionzip(dominant=0.3,contextual=0.2)+pyramiddrop",
        "cdpruner(keep=0.6)+random(keep=0.3,layer=-1)"}) {
    CAPTURE(prune);
    const auto engine = caching_engine();
    for (const int row : {0, 1, 0, 2}) {  // one image
      const Answer got = engine->ask(row_request(row, prune));
      same_answer(got, tiny_engine().ask(row_request(row, prune)));
      CHECK(engine->prefix_cache()->size() == 1);
      if (row > 0) CHECK(got.cached_tokens >= 256);
    }
    CHECK(engine->ask(row_request(8, prune)).cached_tokens == 0);  // another image
    CHECK(engine->prefix_cache()->size() == 2);
  }
}

TEST_CASE("layers with a sliding window: prefixes and batches change nothing") {
  if (!test::test_device().is_cpu()) return;
  const test::SlidingModel folder;
  const auto caching = caching_engine(256, folder.dir()), plain = caching_engine(0, folder.dir());
  std::vector<Request> requests;
  bool differs = false;
  for (const char* prune : {"none", "glimpse", "random(keep=0.5,layer=-1)+glimpse"})
    for (const int row : {0, 1, 8}) requests.push_back(row_request(row, prune));
  const std::vector<Answer> together = plain->ask(std::span<const Request>(requests));
  for (size_t i = 0; i < requests.size(); ++i) {
    const Answer alone = plain->ask(requests[i]);
    same_answer(together[i], alone);
    same_answer(caching->ask(requests[i]), alone);
    differs = differs || alone.ids != tiny_engine().ask(requests[i]).ids;
  }
  CHECK(differs);
}

TEST_CASE("a scout gives way to an image prefix") {
  const auto ask = [](const Engine& engine, int row, Reuse reuse, const char* prune = "scout+glimpse") {
    Request request = row_request(row, prune);
    request.reuse = reuse;
    return engine.ask(request);
  };
  const auto methods = [](const Answer& answer) { return answer.pruning.size(); };
  const auto engine = caching_engine();
  // Rows 0 to 3 are about one image, of which the encoder's output is kept first.
  for (const auto& [row, ran, cached] : {std::tuple(0, true, false),
                                         {1, true, true},
                                         {2, true, true},
                                         {3, true, true},
                                         {1, false, false},
                                         {2, false, true},
                                         {0, false, true},
                                         {8, true, false}}) {
    CAPTURE(row);
    const Answer answer = ask(*engine, row, Reuse::automatic);
    CHECK(answer.shortcut == ran);
    CHECK(methods(answer) == (ran ? 2 : 1));
    CHECK((answer.cached_tokens > 0) == cached);
    same_answer(answer, tiny_engine().ask(row_request(row, ran ? "scout+glimpse" : "glimpse")));
  }
  CHECK(engine->prefix_cache()->size() == 3);

  const auto other = caching_engine();
  for (const int row : {0, 1, 2}) {
    const Answer answer = ask(*other, row, Reuse::never);
    CHECK(answer.shortcut == true);
    same_answer(answer, tiny_engine().ask(row_request(row, "scout+glimpse")));
  }
  CHECK(ask(*other, 0, Reuse::always).shortcut == false);
  CHECK(ask(*other, 1, Reuse::always).cached_tokens > 0);
  CHECK(ask(*other, 2, Reuse::automatic).shortcut == false);  // it is there already
  CHECK_FALSE(
      ask(*other, 0, Reuse::automatic, "scout").shortcut.has_value());     // nothing would be left to prune
  CHECK_FALSE(ask(tiny_engine(), 0, Reuse::always).shortcut.has_value());  // no cache
  CHECK(parse_reuse("auto") == Reuse::automatic);
  CHECK_THROWS_WITH_AS(parse_reuse("often"), "reuse: expected auto, never or always, got 'often'", Error);
}

TEST_CASE("settings that decide what a prefix is have entries of their own") {
  const auto engine = caching_engine();
  const auto cached = [&](const char* prune, Budget budget = {}) {
    Request request = row_request(0, prune);
    request.budget = std::move(budget);
    const Answer answer = engine->ask(request);
    same_answer(answer, tiny_engine().ask(request));
    return answer.cached_tokens > 0;
  };
  CHECK(!cached("glimpse"));
  CHECK(cached("glimpse(threshold=0.1)"));  // that is decided later
  CHECK(cached("glimpse", {.keep = 0.3}));
  CHECK(!cached("none"));
  CHECK(!cached("divprune(keep=0.5)"));
  CHECK(!cached("divprune(keep=0.4)"));
  CHECK(!cached("divprune(keep=0.4)", {.keep = 0.3}));
  CHECK(!cached("divprune(keep=0.4)", {.keep = {}, .count = 40}));
  CHECK(cached("divprune(keep=0.4)"));
  CHECK(!cached("divprune(keep=0.4)+glimpse"));
}

TEST_CASE("several images, text before them, system messages, no image, nothing after the image") {
  const auto engine = caching_engine();
  const auto ask = [&](const Request& request) {
    const Answer answer = engine->ask(request);
    same_answer(answer, tiny_engine().ask(request));
    return answer.cached_tokens;
  };
  for (const char* prune : {"glimpse", "none", "divprune"}) {
    CAPTURE(prune);
    Request two = row_request(0, prune);
    two.media.push_back(row_request(24).media[0]);
    two.messages = {test::user("What letter is on the orange square?", 2)};
    CHECK(ask(two) == 0);
    CHECK(ask(asked(two, "What letter is on the purple hexagon?")) > 350);
    std::swap(two.media[0], two.media[1]);
    CHECK(ask(two) == 0);

    Request before = row_request(0, prune);
    std::reverse(before.messages[0].parts.begin(), before.messages[0].parts.end());
    CHECK(ask(before) == 0);
    const int64_t all = ask(before);
    CHECK(all > 256 + 5);  // the question is part of it
    before.messages[0].parts[0].text = "What letter is on the purple hexagon?";
    CHECK(ask(before) == 0);

    Request other = row_request(0, prune);
    CHECK(ask(other) == 0);
    other.messages.insert(other.messages.begin(), {"system", {{Part::Kind::text, "Be brief."}}});
    CHECK(ask(other) == 0);
  }
  Request text;
  text.messages = {test::user("What is it?")};
  text.max_new_tokens = 8;
  CHECK(ask(text) == 0);
  CHECK(ask(text) == 0);
}

TEST_CASE("a batch whose requests share an image runs it once") {
  const auto engine = caching_engine();
  std::vector<Request> requests;
  for (const int row : {0, 1, 8, 2, 9}) requests.push_back(row_request(row));
  requests.push_back(row_request(3, "none"));
  const std::vector<Answer> got = engine->ask(std::span<const Request>(requests));
  const std::vector<Answer> expected = tiny_engine().ask(std::span<const Request>(requests));
  const std::vector<bool> cached = {false, true, false, true, true, false};
  for (size_t i = 0; i < got.size(); ++i) {
    CAPTURE(i);
    same_answer(got[i], expected[i]);
    CHECK((got[i].cached_tokens > 0) == cached[i]);
    CHECK(expected[i].cached_tokens == 0);
  }
  CHECK(engine->prefix_cache()->size() == 3);
}

TEST_CASE("entries never change, and their bytes are what they hold") {
  const auto engine = caching_engine();
  engine->ask(row_request(0));
  Sequence sequence;
  const Request request = row_request(1);
  sequence.prompt = engine->model().prompt(request.messages, request.media, {});
  sequence.pruners = make_pruners("glimpse", engine->pruner_context());
  const auto end = prefix_end(sequence.prompt, sequence.pruners, 6);
  REQUIRE(end.has_value());
  CHECK(end->when == Moment::after(3));
  CHECK(end->tokens == sequence.prompt.visual_rows.back() + 1);
  const auto prefix = engine->prefix_cache()->find(
      prefix_key(sequence, *end, engine->model().weights_version(), engine->prefix_cache()->seed()));
  REQUIRE(prefix != nullptr);
  REQUIRE(prefix->layers.size() == 4);
  std::vector<at::Tensor> before;
  size_t bytes = prefix->hidden.nbytes() + 8 * prefix->vision.windows.size() + prefix->position_ids.nbytes();
  for (const at::Tensor& state : prefix->vision.states) bytes += state.nbytes();
  for (const LayerCache& layer : prefix->layers) {
    CHECK(layer.length() == end->tokens);
    bytes += memory_of(layer);
    before.push_back(layer.keys().clone());
  }
  bytes += 8 * (prefix->rows.size() + prefix->visual.size() + prefix->source.size());
  CHECK(prefix->bytes() == bytes);
  CHECK(engine->prefix_cache()->bytes() == bytes);

  for (const char* prune : {"glimpse", "glimpse(threshold=0)"}) {
    Request more = row_request(1, prune);
    more.ignore_eos = true;
    CHECK(engine->ask(more).cached_tokens == end->tokens);
  }
  for (size_t l = 0; l < before.size(); ++l) CHECK(at::equal(prefix->layers[l].keys(), before[l]));
  CHECK(prefix->bytes() == bytes);
}

TEST_CASE("the least recently used leave") {
  PrefixCache cache(10 << 10);
  const auto key = [](uint64_t i) { return PrefixKey{i, ~i}; };
  for (uint64_t i = 0; i < 3; ++i) cache.insert(key(i), entry(3));
  CHECK(cache.size() == 3);
  CHECK(cache.bytes() == 9 << 10);
  CHECK(cache.find(key(0)) != nullptr);  // 1 is now the oldest
  cache.insert(key(3), entry(3));
  CHECK(cache.find(key(1)) == nullptr);
  CHECK(cache.size() == 3);
  cache.insert(key(4), entry(7));  // 2 and 0 go too
  CHECK(cache.find(key(2)) == nullptr);
  CHECK(cache.find(key(0)) == nullptr);
  CHECK(cache.bytes() == 10 << 10);
  cache.insert(key(5), entry(11));  // larger than the bound: not stored, and nothing goes for it
  CHECK(cache.find(key(5)) == nullptr);
  CHECK(cache.size() == 2);
  cache.insert(key(4), entry(2));  // in place of the earlier one
  CHECK(cache.bytes() == 5 << 10);
  const auto held = cache.find(key(3));
  cache.insert(key(6), entry(10));
  CHECK(cache.size() == 1);
  CHECK(held->hidden.size(0) == 3);  // whoever holds an entry keeps it
}

TEST_CASE("a cache that is too small for an entry") {
  const auto engine = caching_engine(1);  // MiB; an entry in float32 has more
  for (int i = 0; i < 2; ++i) CHECK(engine->ask(row_request(0)).cached_tokens == 0);
  CHECK(engine->prefix_cache()->size() == 0);
  CHECK(engine->prefix_cache()->bytes() == 0);
}

TEST_CASE("threads share a cache") {
  const auto engine = caching_engine(4);
  std::vector<Answer> expected, got(12);
  for (int row = 0; row < 12; ++row) expected.push_back(tiny_engine().ask(row_request(row)));
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 3; ++t)
      threads.emplace_back([&, t] {
        for (int row = t; row < 12; row += 3) got[row] = engine->ask(row_request(row));
      });
  }
  for (int row = 0; row < 12; ++row) same_answer(got[row], expected[row]);
  CHECK(engine->prefix_cache()->bytes() <= 4 << 20);
}

TEST_CASE("a session's turns are fresh questions about the whole conversation") {
  const auto engine = caching_engine();
  Request settings;
  settings.max_new_tokens = 32;
  const Medium image = row_request(0).media[0];
  const std::string first = "What letter is on the orange square?",
                    second = "What letter is on the purple hexagon?";
  Session with(*engine, settings), without(tiny_engine(), settings);
  for (Session* session : {&with, &without}) session->add(image);
  std::stop_source stopped;
  stopped.request_stop();
  CHECK(with.ask(second, stopped.get_token()).finish_reason == "cancelled");  // as if not asked
  const Answer one = with.ask(first);
  same_answer(one, without.ask(first));
  std::string streamed;
  const Answer two = with.ask(second, {}, [&](const std::string& text) { streamed += text; });
  CHECK(streamed == two.text);
  same_answer(two, without.ask(second));
  CHECK(one.cached_tokens == 0);
  CHECK(two.cached_tokens >= 256);
  CHECK(two.prompt_tokens > one.prompt_tokens);
  with.clear();
  CHECK(with.ask("Hello").visual_tokens == 0);
}

// Further questions about a golden case's picture give what they give without a cache, with every method.
void check_prefixes(const test::GoldenCase& golden, const std::filesystem::path& clip,
                    const std::string& ids_array) {
  const test::Inputs inputs(golden, golden.info["inputs"]);
  auto model = test::load_model(golden, at::kFloat, clip);
  const auto modules = GlimpseModules::load(golden.folder / golden.info["new_modules"].get<std::string>(),
                                            base_shape(*model), model->decoder().options());
  const Engine engine(std::move(model), modules);
  const std::vector<int64_t> ids = golden.integers(ids_array);

  struct Run {
    Sequence sequence;
    std::vector<at::Tensor> logits;  // of the prefill and three decoding steps
  };
  const auto run = [&](const std::string& prune, PrefixCache* cache, int64_t question) {
    Run out;
    Sequence& sequence = out.sequence;
    std::vector<int64_t> own = ids;
    own.back() = question;
    sequence.prompt = engine.model().prompt(own, inputs.patches);
    sequence.prompt.question = "What is number " + std::to_string(question) + "?";
    sequence.pruners = make_pruners(prune, engine.pruner_context());
    sequence.prefix_key = prefix_key(
        sequence, *prefix_end(sequence.prompt, sequence.pruners, engine.model().decoder().config().layers),
        engine.model().weights_version());
    PrefillBatch batch(engine.model(), cache);
    batch.add(sequence);
    while (!batch.done()) CHECK(batch.step().empty());
    out.logits.push_back(batch.finish());
    for (int i = 0; i < 3; ++i)
      out.logits.push_back(decode_step(engine.model(), std::vector<Sequence*>{&sequence},
                                       {out.logits.back().argmax().item<int64_t>()}));
    return out;
  };
  for (const char* prune :
       {"none", "glimpse", "divprune(keep=0.5)", "visionzip", "vscan(window=2,layers=2,layer_keep=0.3)",
        "pyramiddrop", "divprune(keep=0.5)+pyramiddrop", "divprune(keep=0.5)+glimpse(threshold=0.2)",
        "cdpruner", "cdpruner(keep=0.5)+glimpse", "cdpruner(relevance=words)", "random(layer=-1)",
        "visionzip(dominant=20,contextual=6)+glimpse", "visionzip+pyramiddrop",
        "visionzip+cdpruner(keep=0.1)"}) {
    CAPTURE(prune);
    PrefixCache cache(size_t{1} << 30);
    for (const int64_t question : {40, 41, 42}) {
      const Run expected = run(prune, nullptr, question), got = run(prune, &cache, question);
      CHECK((got.sequence.cached_tokens > 0) == (question > 40));
      CHECK(got.sequence.kept == expected.sequence.kept);
      CHECK(got.sequence.shift == expected.sequence.shift);
      CHECK(at::equal(got.sequence.position_ids, expected.sequence.position_ids));
      for (size_t i = 0; i < expected.logits.size(); ++i)
        CHECK(test::difference(got.logits[i], expected.logits[i]) <
              (question > 40 ? 1e-4 * test::fp32_slack() : test::repeated()));
      for (size_t l = 0; l < expected.sequence.cache.layers.size(); ++l)
        CHECK(got.sequence.cache.layers[l].length() == expected.sequence.cache.layers[l].length());
    }
    CHECK(cache.size() == 1);
  }
}

TEST_CASE("plain positions: a LLaVA's prompts, where some methods renumber") {
  check_prefixes(test::GoldenCase(test::golden_dir() / "llava_tiny/cases/l01_single.json"),
                 test::golden_dir() / "methods/clip_full_112", "input_ids");
}

TEST_CASE("a picture in tiles, which ends with a row that is no visual token") {
  check_prefixes(test::GoldenCase(test::golden_dir() / "llava_next_tiny/glimpse/g01_landscape.json"), {},
                 "prompt_ids");
}
