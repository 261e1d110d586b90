// What must hold for every answer, with the built-in model in float32.
#include <algorithm>

#include "builtin.h"
#include "glimpse/base/check.h"
#include "glimpse/engine/sequence.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;
using test::row_request;
using test::tiny_engine;
using Ids = std::vector<int64_t>;

namespace {

// The prefill of one request with the given composition.
Sequence prefilled(const Request& request, const std::string& prune, const Observer& observe = {}) {
  Sequence sequence;
  sequence.prompt = tiny_engine().model().prompt(request.messages, request.media, request.bounds);
  sequence.pruners = make_pruners(prune, tiny_engine().pruner_context());
  const std::vector<Sequence*> one = {&sequence};
  prefill(tiny_engine().model(), one, observe);
  return sequence;
}

void same_answer(const Answer& a, const Answer& b) {
  CHECK(a.ids == b.ids);
  CHECK(a.text == b.text);
  CHECK(a.finish_reason == b.finish_reason);
  CHECK(a.keep == b.keep);
  CHECK(a.kv_bytes == b.kv_bytes);
}

// `inner` is a subset of `outer`; both ascend.
bool within(const Ids& inner, const Ids& outer) {
  return std::is_sorted(inner.begin(), inner.end()) &&
         std::includes(outer.begin(), outer.end(), inner.begin(), inner.end());
}

Request conversation(const std::vector<std::string>& turns, const Medium& image) {
  Request request = row_request(0);
  request.media = {image};
  request.messages = {test::user(turns[0], 1)};
  for (size_t i = 1; i < turns.size(); ++i) {
    Message message = test::user(turns[i]);
    if (i % 2 == 1) message.role = "assistant";
    request.messages.push_back(message);
  }
  return request;
}

}  // namespace

TEST_CASE("keeping every token equals no pruning") {
  for (const int row : {0, 5, 21}) {
    const Answer none = tiny_engine().ask(row_request(row, "none"));
    CHECK(none.kept_tokens == none.visual_tokens);
    CHECK(none.text == test::tiny_rows("answers.jsonl")[row]["answer_full"]);
    for (const char* prune : {"glimpse(threshold=0)", "random(keep=1)", "random(keep=1,layer=-1)",
                              "random(keep=1,layer=0)+glimpse(threshold=0)", "random(keep=1,layer=5)"}) {
      const Answer all = tiny_engine().ask(row_request(row, prune));
      CAPTURE(prune);
      CHECK(all.ids == none.ids);
      CHECK(all.text == none.text);
      CHECK(all.keep == none.keep);
    }
  }
}

TEST_CASE("a batch of different requests equals one by one") {
  std::vector<Request> requests = {row_request(0), row_request(7, "none"),
                                   row_request(14, "random(keep=0.5,layer=-1)+glimpse"), row_request(0)};
  requests[3].messages = {test::user("What colour is the red square?")};
  requests[3].media.clear();
  requests.push_back(row_request(30, "reference(layer=1)"));
  requests[4].boxes = {{{0.1, 0.1, 0.4, 0.6}}};
  requests[1].max_new_tokens = 3;
  requests.push_back(row_request(3));
  requests[5].media.push_back(row_request(9).media[0]);
  requests[5].messages[0].parts.insert(requests[5].messages[0].parts.begin(), Part{Part::Kind::image, ""});
  const std::vector<Answer> together = tiny_engine().ask(std::span<const Request>(requests));
  REQUIRE(together.size() == requests.size());
  for (size_t i = 0; i < requests.size(); ++i) {
    CAPTURE(i);
    const Answer alone = tiny_engine().ask(requests[i]);
    same_answer(together[i], alone);
    CHECK(together[i].scores.size() == alone.scores.size());
    for (size_t s = 0; s < std::min(alone.scores.size(), together[i].scores.size()); ++s)
      CHECK(std::abs(together[i].scores[s] - alone.scores[s]) < 1e-3);
  }
  std::reverse(requests.begin(), requests.end());
  const std::vector<Answer> reversed = tiny_engine().ask(std::span<const Request>(requests));
  for (size_t i = 0; i < requests.size(); ++i)
    CHECK(reversed[requests.size() - 1 - i].ids == together[i].ids);
}

TEST_CASE("sequences that dynamic scaling turns differently do not change each other") {
  const test::BrokenModel folder;
  folder.edit_json("config.json", [](nlohmann::json& c) {
    c["max_position_embeddings"] = 32;
    c["rope_scaling"].update({{"type", "dynamic"}, {"factor", 8}});
  });
  const auto model = load_vlm(folder.dir(), {.dtype = at::kFloat, .device = test::test_device()});
  const std::vector<Ids> ids = {Ids(20, 40), Ids(60, 41)};  // the first passes 32 while it is decoded
  const auto run = [&](const std::vector<size_t>& which) {
    std::vector<Sequence> sequences(which.size());
    std::vector<Sequence*> each;
    for (size_t i = 0; i < which.size(); ++i) {
      sequences[i].prompt = model->prompt(ids[which[i]], {});
      each.push_back(&sequences[i]);
    }
    std::vector<at::Tensor> logits = {prefill(*model, each)};
    for (int64_t step = 0; step < 20; ++step)
      logits.push_back(decode_step(*model, each, Ids(each.size(), 50 + step)));
    return at::stack(logits, 1).cpu();  // [sequences, steps, V]
  };
  const at::Tensor together = run({0, 1});
  for (const size_t one : {0, 1})
    CHECK((run({one})[0] - together[static_cast<int64_t>(one)]).abs().max().item<double>() < 1e-3);
}

TEST_CASE("no requests, no answers") {
  CHECK(tiny_engine().ask(std::span<const Request>()).empty());
}

TEST_CASE("a turn's answer equals a fresh run over the whole conversation") {
  const Medium image = row_request(0).media[0];
  const std::string first = "What letter is on the orange square?",
                    second = "What letter is on the purple hexagon?";
  const Answer one = tiny_engine().ask(conversation({first}, image));
  const Answer two = tiny_engine().ask(conversation({first, one.text, second}, image));
  const auto fresh = Engine::load({.model = test::tiny_dir() / "model",
                                   .new_modules = {(test::tiny_dir() / "new_modules").string()},
                                   .dtype = "fp32",
                                   .device = test::device_name()});
  same_answer(two, fresh->ask(conversation({first, one.text, second}, image)));
  CHECK(two.prompt_tokens > one.prompt_tokens);
  CHECK(two.visual_tokens == one.visual_tokens);
  CHECK(two.keep != one.keep);  // the last question does the glimpsing

  // The conversation's prompt is the first prompt, its answer, the end of the turn and the next question.
  const Vlm& model = tiny_engine().model();
  const Prompt start = model.prompt(conversation({first}, image).messages, {image}, {});
  const Prompt whole = model.prompt(conversation({first, one.text, second}, image).messages, {image}, {});
  Ids joined = start.ids;
  joined.insert(joined.end(), one.ids.begin(), one.ids.end());
  joined.push_back(*model.tokenizer().token_id("<|im_end|>"));
  REQUIRE(whole.ids.size() > joined.size());
  CHECK(std::equal(joined.begin(), joined.end(), whole.ids.begin()));
}

TEST_CASE("a composition equals its stages") {
  const Request request = row_request(4);
  const Sequence random = prefilled(request, "random(keep=0.5,layer=-1)");
  const Sequence both = prefilled(request, "random(keep=0.5,layer=-1)+glimpse(threshold=0.5)");
  const Image& image = std::get<Image>(request.media[0]);
  const auto total = static_cast<int64_t>(image.width / 28 * (image.height / 28));
  CHECK(static_cast<int64_t>(random.kept.size()) == total / 2);
  CHECK(within(both.kept, random.kept));
  CHECK(both.kept.size() < random.kept.size());
  CHECK(!both.kept.empty());
  // The predictor is asked about the survivors only.
  for (int64_t token = 0; token < both.scores.size(0); ++token)
    if (!std::binary_search(random.kept.begin(), random.kept.end(), token))
      CHECK(both.scores[token].item<float>() == 0);
  // With a first stage that keeps everything, the second decides as if alone.
  CHECK(prefilled(request, "random(keep=1,layer=-1)+glimpse").kept == prefilled(request, "glimpse").kept);
  // The order of writing does not matter for cuts at different layers.
  CHECK(prefilled(request, "glimpse(threshold=0.5)+random(keep=0.5,layer=-1)").kept == both.kept);
  // Stages at one layer run in the order written.
  const Sequence after = prefilled(request, "glimpse+random(keep=0.004,layer=3)");
  CHECK(within(after.kept, prefilled(request, "glimpse").kept));
}

TEST_CASE("every text row survives, and rows shrink at the cut") {
  const Request request = row_request(2);
  const Prompt prompt = tiny_engine().model().prompt(request.messages, request.media, {});
  const auto text = static_cast<int64_t>(prompt.ids.size() - prompt.visual_rows.size());
  for (const char* prune : {"glimpse", "random(keep=0.1,layer=-1)", "random(keep=0.1,layer=2)+glimpse",
                            "glimpse(threshold=1,min_keep=none)"}) {
    CAPTURE(prune);
    std::vector<int64_t> rows;
    const Sequence s =
        prefilled(request, prune, [&](int64_t, const at::Tensor& x) { rows.push_back(x.size(0)); });
    const auto kept = static_cast<int64_t>(s.kept.size());
    CHECK(s.position_ids.size(1) == text + kept);
    Ids expected;  // positions of the text rows and the kept visual rows, in order
    for (size_t row = 0, visual = 0; row < prompt.ids.size(); ++row) {
      const bool is_visual =
          visual < prompt.visual_rows.size() && prompt.visual_rows[visual] == static_cast<int64_t>(row);
      if (!is_visual || std::binary_search(s.kept.begin(), s.kept.end(), static_cast<int64_t>(visual)))
        expected.push_back(static_cast<int64_t>(row));
      visual += is_visual;
    }
    CHECK(at::equal(s.position_ids, prompt.position_ids.index_select(1, at::tensor(expected))));
    for (const LayerCache& layer : s.cache.layers) CHECK(layer.length() == text + kept);
    CHECK(rows.back() == text + kept);
    CHECK(rows.front() > rows.back() - (std::string(prune).starts_with("random(keep=0.1,layer=-1)") ? 1 : 0));
  }
  const Sequence none = prefilled(request, "none"), cut = prefilled(request, "glimpse");
  CHECK(cut.cache.bytes() < none.cache.bytes() / 2);
}

TEST_CASE("two images in one prompt") {
  Request request = row_request(0, "glimpse");
  request.media = {row_request(0).media[0], row_request(24).media[0]};
  request.messages = {test::user("What letter is on the orange square?", 2)};
  const Answer answer = tiny_engine().ask(request);
  REQUIRE(answer.segments.size() == 2);
  REQUIRE(answer.keep.size() == 2);
  CHECK(answer.segments[1].first == answer.segments[0].count());
  CHECK(answer.visual_tokens == answer.segments[0].count() + answer.segments[1].count());
  CHECK(static_cast<int64_t>(answer.keep[0].size() + answer.keep[1].size()) == answer.kept_tokens);
  for (size_t i = 0; i < 2; ++i)
    for (const int64_t token : answer.keep[i]) CHECK((token >= 0 && token < answer.segments[i].count()));
  request.prune = "glimpse(threshold=0)";
  const Answer all = tiny_engine().ask(request);
  request.prune = "none";
  CHECK(all.ids == tiny_engine().ask(request).ids);
}

TEST_CASE("a prompt without images is not pruned") {
  Request request;
  request.messages = {test::user("What is it?")};
  request.max_new_tokens = 8;
  const Answer answer = tiny_engine().ask(request);  // "auto" is glimpse here
  request.prune = "none";
  same_answer(answer, tiny_engine().ask(request));
  CHECK(answer.visual_tokens == 0);
  CHECK(answer.keep.empty());
  CHECK(answer.scores.empty());
}

TEST_CASE("a budget sets the number of tokens for every method") {
  for (const char* prune : {"glimpse", "random"}) {
    Request request = row_request(11, prune);
    request.budget.count = 9;
    CHECK(tiny_engine().ask(request).kept_tokens == 9);
    request.budget = {.keep = 0.111, .count = {}};
    const Answer answer = tiny_engine().ask(request);
    CHECK(answer.kept_tokens == std::llround(0.111 * static_cast<double>(answer.visual_tokens)));
  }
}

TEST_CASE("wrong requests") {
  Request request = row_request(0);
  request.max_new_tokens = 0;
  CHECK_THROWS_WITH_AS(tiny_engine().ask(request), "max_new_tokens: 0 is not positive", Error);
  request = row_request(0, "glimps");
  CHECK_THROWS_WITH_AS(tiny_engine().ask(request), doctest::Contains("unknown method 'glimps'"), Error);
  request = row_request(0);
  request.media.clear();
  CHECK_THROWS_AS(tiny_engine().ask(request), Error);
  request = row_request(0, "reference");
  CHECK_THROWS_WITH_AS(tiny_engine().ask(request), doctest::Contains("needs a list of boxes"), Error);
}
