// What must hold for every pruning method, with the built-in model in float32.
#include <algorithm>

#include "builtin.h"
#include "glimpse/base/check.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;
using test::row_request;
using test::tiny_engine;
using Ids = std::vector<int64_t>;

namespace {

const std::vector<std::string> kMethods = {"glimpse",  "random",    "divprune", "dart",
                                           "cdpruner", "visionzip", "vscan",    "pyramiddrop"};

struct Run {
  Sequence sequence;
  at::Tensor logits;
};

Run run(const Request& request, const PrunerChain& chain, const Budget& budget = {}) {
  Run out;
  out.sequence.prompt = tiny_engine().model().prompt(request.messages, request.images, request.bounds);
  out.sequence.pruners = chain;
  out.sequence.budget = budget;
  out.logits = prefill(tiny_engine().model(), std::vector<Sequence*>{&out.sequence});
  return out;
}

PrunerChain chain(const std::string& composition) {
  return make_pruners(composition, tiny_engine().pruner_context());
}

Request two_images(const std::string& prune) {
  Request request = row_request(0, prune);
  request.images.push_back(row_request(24).images[0]);
  request.messages = {test::user("What letter is on the orange square?", 2)};
  return request;
}

// Keeps what it was told, with the features it was told.
class Given : public Pruner {
 public:
  Given(Cut cut, Selection selection) : cut_(cut), selection_(std::move(selection)) {}
  std::string name() const override { return "given"; }
  nlohmann::json settings() const override { return {}; }
  std::vector<Cut> cuts() const override { return {cut_}; }
  Selection select(const View&, const Cut&, const Budget&) const override { return selection_; }

 private:
  Cut cut_;
  Selection selection_;
};

// Notes what the first cut of another method chose.
class Witness : public Pruner {
 public:
  explicit Witness(std::shared_ptr<const Pruner> inner) : inner_(std::move(inner)) {}
  std::string name() const override { return inner_->name(); }
  nlohmann::json settings() const override { return inner_->settings(); }
  std::vector<Cut> cuts() const override { return inner_->cuts(); }
  Taps taps() const override { return inner_->taps(); }
  Selection select(const View& view, const Cut& cut, const Budget& budget) const override {
    return chosen = inner_->select(view, cut, budget);
  }
  mutable Selection chosen;

 private:
  std::shared_ptr<const Pruner> inner_;
};

}  // namespace

TEST_CASE("keeping everything is no pruning") {
  for (const std::string& method : kMethods)
    for (Request request : {row_request(7), two_images("")}) {
      CAPTURE(method);
      request.prune = "none";
      const Answer base = tiny_engine().ask(request);
      request.prune = method;
      request.budget.keep = 1;
      const Answer answer = tiny_engine().ask(request);
      CHECK(answer.kept_tokens == base.visual_tokens);
      CHECK(answer.ids == base.ids);
      CHECK(answer.kv_bytes == base.kv_bytes);
    }
}

TEST_CASE("a budget means the same for every method") {
  for (const std::string& method : kMethods) {
    CAPTURE(method);
    Request request = two_images(method);
    for (const int64_t count : {0, 1, 2, 9, 40, 100000}) {
      request.budget = {.keep = {}, .count = count};
      const Answer answer = tiny_engine().ask(request);
      CHECK(answer.kept_tokens == std::min(count, answer.visual_tokens));
    }
    request.budget = {.keep = 0.111};
    const Answer share = tiny_engine().ask(request);
    CHECK(share.kept_tokens == static_cast<int64_t>(0.111 * static_cast<double>(share.visual_tokens)));
    request.budget = {.keep = {}, .count = {}, .counts = {3, 11}};
    const Answer each = tiny_engine().ask(request);
    CHECK(each.keep[0].size() == 3);
    CHECK(each.keep[1].size() == 11);
    request.budget.counts = {3};
    CHECK_THROWS_WITH_AS(tiny_engine().ask(request), "budget: 1 counts for 2 images", Error);
  }
}

TEST_CASE("of several methods the last meets the budget") {
  Request request = row_request(4, "divprune(keep=0.5)+glimpse");
  request.budget.count = 5;
  CHECK(tiny_engine().ask(request).kept_tokens == 5);
  request.prune = "glimpse+divprune(keep=0.5)";  // the glimpse cut still comes last
  CHECK(tiny_engine().ask(request).kept_tokens == 5);
}

TEST_CASE("text is never lost and order is kept") {
  for (const std::string& method : kMethods)
    for (const Request& request : {row_request(2), two_images("")}) {
      CAPTURE(method);
      const Run done = run(request, chain(method));
      const Prompt& prompt = done.sequence.prompt;
      const Ids& kept = done.sequence.kept;
      CHECK(std::is_sorted(kept.begin(), kept.end()));
      CHECK(std::adjacent_find(kept.begin(), kept.end()) == kept.end());
      CHECK(!kept.empty());
      CHECK(kept.size() < prompt.visual_rows.size());
      Ids rows;
      for (size_t row = 0, visual = 0; row < prompt.ids.size(); ++row) {
        const bool is_visual =
            visual < prompt.visual_rows.size() && prompt.visual_rows[visual] == static_cast<int64_t>(row);
        if (!is_visual || std::binary_search(kept.begin(), kept.end(), static_cast<int64_t>(visual)))
          rows.push_back(static_cast<int64_t>(row));
        visual += is_visual;
      }
      CHECK(at::equal(done.sequence.position_ids, prompt.position_ids.index_select(1, at::tensor(rows))));
      CHECK(done.sequence.cache.layers.back().length() == std::ssize(rows));
    }
}

TEST_CASE("cuts inside the language model leave earlier caches alone") {
  const Run done = run(row_request(2), chain("pyramiddrop(layers=1+3,keep=0.5+0.1)"));
  const auto& layers = done.sequence.cache.layers;
  const auto total = static_cast<int64_t>(done.sequence.prompt.visual_rows.size());
  const int64_t text = static_cast<int64_t>(done.sequence.prompt.ids.size()) - total;
  CHECK(layers[0].length() == text + total);
  CHECK(layers[1].length() == text + total / 2);
  CHECK(layers[2].length() == text + total / 2);
  CHECK(layers[3].length() == text + total / 10);
}

TEST_CASE("a batch of all methods equals its requests one by one") {
  std::vector<Request> requests;
  for (size_t i = 0; i < kMethods.size(); ++i)
    requests.push_back(row_request(static_cast<int>(i), kMethods[i]));
  requests.push_back(two_images("visionzip+pyramiddrop"));
  requests.push_back(row_request(3, "vscan(layers=none,layer_keep=none)+dart(keep=0.1)"));
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
  const Request request = row_request(4);
  for (const std::string first : {"divprune(keep=0.5)", "visionzip(dominant=0.3,contextual=0.2)",
                                  "vscan(keep=0.5,layers=none,layer_keep=none)", "dart(keep=0.4)"})
    for (const std::string second :
         {"glimpse(threshold=0.5)", "cdpruner(keep=0.2)", "pyramiddrop", "dart(keep=0.1)"}) {
      CAPTURE(first + "+" + second);
      const auto witness = std::make_shared<Witness>(chain(first)[0]);
      run(request, {witness});
      const auto given = std::make_shared<Given>(witness->cuts()[0], witness->chosen);
      const Run by_hand = run(request, {given, chain(second)[0]});
      const Run composed = run(request, chain(first + "+" + second));
      CHECK(composed.sequence.kept == by_hand.sequence.kept);
      CHECK(composed.sequence.kept.size() < witness->chosen.keep.size());
      CHECK((composed.logits - by_hand.logits).abs().max().item<double>() < 1e-4);
    }
}
