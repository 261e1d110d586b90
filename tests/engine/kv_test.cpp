// Engines with KV caches of 8 and 4 bits: what a prompt makes is what it makes without them, decoding differs
// by their rounding, and it is the same behind cached images, from the disk, in chunks and beside others.
#include <ATen/core/grad_mode.h>

#include <cmath>

#include "builtin.h"
#include "glimpse/base/check.h"
#include "glimpse/engine/prefill.h"
#include "glimpse/engine/scheduler.h"
#include "io/scratch.h"

using namespace glimpse;
using test::row_request;
using test::tiny_engine;

namespace {

std::unique_ptr<Engine> load(const std::string& kv, size_t cache_mb = 0, const std::string& cache_dir = "") {
  return Engine::load({.model = test::tiny_dir() / "model",
                       .new_modules = {(test::tiny_dir() / "new_modules").string()},
                       .dtype = "fp32",
                       .kv = kv,
                       .cache_mb = cache_mb,
                       .cache_dir = cache_dir});
}

const bool kHere = test::on_cpu();  // where there are kernels

// Logits [V] of the token after the prompt, then after each of `ids`.
std::vector<at::Tensor> logits_along(const Engine& engine, const Request& request,
                                     const std::vector<int64_t>& ids) {
  const at::NoGradGuard no_grad;
  Sequence sequence;
  sequence.kv = engine.kv();
  sequence.prompt = engine.model().prompt(request.messages, request.media, request.bounds);
  sequence.pruners = make_pruners(request.prune, engine.pruner_context());
  Sequence* const one[] = {&sequence};
  std::vector<at::Tensor> out = {prefill(engine.model(), one)[0]};
  for (const int64_t id : ids) out.push_back(decode_step(engine.model(), one, {id})[0]);
  return out;
}

void same_answer(const Answer& got, const Answer& expected) {
  CHECK(got.ids == expected.ids);
  CHECK(got.keep == expected.keep);
  CHECK(got.scores == expected.scores);
  CHECK(got.kv_bytes == expected.kv_bytes);
}

struct Difference {
  double most = 0, mean = 0;
};
Difference difference(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  Difference out;
  for (size_t i = 0; i < a.size(); ++i) {
    const double own = std::abs(double{a[i]} - double{b[i]});
    out.most = std::max(out.most, own);
    out.mean += own / static_cast<double>(a.size());
  }
  return out;
}

}  // namespace

TEST_CASE("the prompt's pass and its cuts read nothing rounded; decoding is as near as the codes are" *
          doctest::skip(!kHere)) {
  for (const auto& [kv, limit] : {std::pair{"int8", 0.1}, {"int4", 1.5}}) {
    const auto engine = load(kv);
    int equal = 0, rows = 0;
    double most = 0;
    for (const auto& [prune, row] : {std::pair{"glimpse", 0},
                                     {"glimpse", 5},
                                     {"glimpse", 10},
                                     {"none", 15},
                                     {"pyramiddrop", 20},
                                     {"scout+glimpse", 0}}) {
      CAPTURE(kv);
      CAPTURE(prune);
      CAPTURE(row);
      const Request request = row_request(row, prune);
      const Answer got = engine->ask(request), plain = tiny_engine().ask(request);
      CHECK(got.keep == plain.keep);
      CHECK(got.scores == plain.scores);
      // Both have room for 64 rows more.
      const size_t bytes = LayerCache::row_bytes(engine->kv(), 64, 4);
      CHECK(got.kv_bytes * 256 == plain.kv_bytes * bytes);
      const auto exact = logits_along(tiny_engine(), request, plain.ids),
                 rounded = logits_along(*engine, request, plain.ids);
      CHECK(at::equal(rounded[0], exact[0]));
      double own = 0;
      for (size_t i = 1; i < exact.size(); ++i)
        own = std::max(own, (rounded[i] - exact[i]).abs().max().item<double>());
      most = std::max(most, own);
      // The same ids up to where the two likeliest are closer than the rounding.
      size_t i = 0;
      while (i < got.ids.size() && i < plain.ids.size() && got.ids[i] == plain.ids[i]) ++i;
      if (got.ids != plain.ids) {
        const auto best = std::get<0>(exact.at(i).topk(2));
        CHECK((best[0] - best[1]).item<double>() <= 2 * own);
      }
      equal += got.ids == plain.ids;
      ++rows;
    }
    CHECK(equal >= rows - (kv == std::string("int8") ? 0 : 1));
    CHECK(most < limit);
    CHECK(most > 0);
  }
}

TEST_CASE("behind a cached image, from memory and from the disk" * doctest::skip(!kHere)) {
  for (const auto& [kv, limit] : {std::pair{"int8", 0.001}, {"int4", 0.02}})
    for (const char* prune : {"glimpse", "none", "divprune(keep=0.5)+glimpse(threshold=0.3)"}) {
      CAPTURE(kv);
      CAPTURE(prune);
      const test::Scratch scratch;
      const std::string folder = (scratch / "cache").string();
      std::vector<Answer> from_memory;
      {
        const auto plain = load(kv), caching = load(kv, 256, folder);
        for (int row = 0; row < 4; ++row) {
          const Answer got = caching->ask(row_request(row, prune)),
                       alone = plain->ask(row_request(row, prune));
          CHECK((got.cached_tokens > 0) == (row > 0));
          // What the prompt reads of the image is rounded from the second question on.
          CHECK(difference(got.scores, alone.scores).mean <= (row == 0 ? 0 : limit));
          CHECK(got.kv_bytes == alone.kv_bytes);
          if (row == 0 || kv == std::string("int8")) {
            CHECK(got.keep == alone.keep);
            CHECK(got.ids == alone.ids);
          }
          from_memory.push_back(got);
        }
      }
      const auto again = load(kv, 256, folder);
      for (int row = 1; row < 4; ++row) {
        const Answer got = again->ask(row_request(row, prune));
        CHECK(got.cached_tokens > 0);
        same_answer(got, from_memory[row]);
      }
      // What another format has left is not found.
      for (const char* other : {"bf16", "int8", "int4"})
        if (prune == std::string("glimpse") && other != std::string(kv))
          CHECK(load(other, 256, folder)->ask(row_request(1, prune)).cached_tokens == 0);
    }
}

TEST_CASE("beside others, in chunks and as several answers to one prompt" * doctest::skip(!kHere)) {
  for (const char* kv : {"int8", "int4"}) {
    CAPTURE(kv);
    const auto engine = load(kv);
    std::vector<Request> requests;
    for (int i = 0; i < 4; ++i) requests.push_back(row_request(5 * i, i == 3 ? "none" : "glimpse"));
    std::vector<Answer> alone;
    for (const Request& request : requests) alone.push_back(engine->ask(request));
    for (const int64_t chunk : {20, 2000}) {
      CAPTURE(chunk);
      Scheduler scheduler(*engine, {.max_sequences = 3, .chunk_rows = chunk});
      std::vector<std::future<Answer>> futures;
      for (const Request& request : requests) futures.push_back(scheduler.submit(request));
      while (scheduler.step()) CHECK(scheduler.state().kv_used <= scheduler.state().kv_reserved);
      for (size_t i = 0; i < requests.size(); ++i) {
        CAPTURE(i);
        const Answer got = futures[i].get();
        CHECK(got.ids == alone[i].ids);
        CHECK(got.keep == alone[i].keep);
        CHECK(got.kv_bytes == alone[i].kv_bytes);
        CHECK(difference(got.scores, alone[i].scores).most < 1e-5);
      }
    }
    Scheduler scheduler(*engine, {.max_sequences = 3});
    auto futures = scheduler.submit(requests[0], 3);
    scheduler.run();
    for (auto& future : futures) CHECK(future.get().ids == alone[0].ids);
  }
}

TEST_CASE("what --kv may be" * doctest::skip(!kHere)) {
  CHECK_THROWS_WITH_AS(load("int2"), "kv: expected bf16, int8 or int4, got 'int2'", Error);
  CHECK(load("bf16")->kv() == KvFormat::plain);
}
