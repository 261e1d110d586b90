// What holds in float32 (prefix_cache_test.cpp, scheduler_test.cpp) holds in bf16 and with weights of 8 and 4
// bits: behind a cached image, in blocks and beside others, products of other sizes are rounded a little
// differently, but the same tokens are kept and the same answers given.
#include "builtin.h"
#include "glimpse/engine/scheduler.h"
#include "glimpse/nn/linear.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;
using test::row_request;

namespace {

struct Kind {
  const char *dtype, *weights;
  std::optional<GemmPath> path;  // of bf16 products; none: this CPU's
};
const Kind kKinds[] = {{"bf16", "auto", {}},
                       {"bf16", "auto", GemmPath::native},
                       {"fp32", "int8", {}},
                       {"bf16", "int8", {}},
                       {"bf16", "int4", {}}};
constexpr double kTolerance = 0.01;  // of the predictor's probabilities

std::unique_ptr<Engine> load(const Kind& kind, size_t cache_mb) {
  return Engine::load({.model = test::tiny_dir() / "model",
                       .new_modules = {(test::tiny_dir() / "new_modules").string()},
                       .dtype = kind.dtype,
                       .weights = kind.weights,
                       .device = test::device_name(),
                       .cache_mb = cache_mb});
}

// Calls f with an engine of each kind and one that also keeps image prefixes.
template <class Function>
void on_every_kind(Function f) {
  for (const Kind& kind : kKinds) {
    if (!test::on_cpu() && (kind.weights != std::string("auto") || kind.path)) continue;  // kernels of CPUs
    CAPTURE(kind.dtype);
    CAPTURE(kind.weights);
    CAPTURE(kind.path.has_value());
    force_bf16_gemm_path(kind.path);
    f(*load(kind, 0), *load(kind, 256));
  }
  force_bf16_gemm_path({});
}

double difference(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  double most = 0;
  for (size_t i = 0; i < a.size(); ++i) most = std::max(most, std::abs(double{a[i]} - double{b[i]}));
  return most;
}

void same(const Answer& got, const Answer& expected) {
  CHECK(got.ids == expected.ids);
  CHECK(got.keep == expected.keep);
  CHECK(got.kv_bytes == expected.kv_bytes);
  CHECK(difference(got.scores, expected.scores) < kTolerance);
}

}  // namespace

TEST_CASE("further questions behind a cached image") {
  on_every_kind([](const Engine& plain, const Engine& caching) {
    for (const char* prune : {"glimpse", "none", "divprune(keep=0.5)+glimpse(threshold=0.3)"})
      for (int row = 0; row < 4; ++row) {
        CAPTURE(prune);
        CAPTURE(row);
        const Answer got = caching.ask(row_request(row, prune));
        same(got, plain.ask(row_request(row, prune)));
        if (row > 0) CHECK(got.cached_tokens >= 100);
      }
  });
}

TEST_CASE("beside others and in chunks") {
  on_every_kind([](const Engine& engine, const Engine&) {
    std::vector<Request> requests;
    for (int i = 0; i < 8; ++i) requests.push_back(row_request(5 * i, i % 4 == 3 ? "none" : "glimpse"));
    std::vector<Answer> alone;
    for (const Request& request : requests) alone.push_back(engine.ask(request));
    for (const int64_t chunk : {20, 2000}) {
      CAPTURE(chunk);
      Scheduler scheduler(engine, {.max_sequences = 4, .chunk_rows = chunk});
      std::vector<std::future<Answer>> futures;
      for (const Request& request : requests) futures.push_back(scheduler.submit(request));
      scheduler.run();
      for (size_t i = 0; i < requests.size(); ++i) {
        CAPTURE(i);
        same(futures[i].get(), alone[i]);
      }
    }
  });
}
