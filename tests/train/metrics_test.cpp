#include "glimpse/train/metrics.h"

#include <cmath>

#include "io/scratch.h"

using namespace glimpse;
using glimpse::test::contents;
using glimpse::test::error_of;
using glimpse::test::Scratch;

namespace {

StepMetrics step(int64_t number, double loss) {
  StepMetrics metrics{.step = number, .epoch = 0.5};
  metrics.add("loss", loss);
  metrics.add("a", 2);
  return metrics;
}

std::vector<int64_t> steps_of(const std::vector<StepMetrics>& log) {
  std::vector<int64_t> steps;
  for (const StepMetrics& metrics : log) steps.push_back(metrics.step);
  return steps;
}

}  // namespace

TEST_CASE("mask scores are micro-averages, the kept share a mean over samples") {
  MaskScore score;
  // 1 of 2 kept is right, 1 of 3 found; then 2 of 2 right, 2 of 2 found in a picture of 10 tokens.
  score.add(std::vector<uint8_t>{1, 1, 0, 0}, std::vector<uint8_t>{0, 255, 1, 1});
  MaskScore second;
  second.add(std::vector<uint8_t>{0, 0, 0, 0, 0, 0, 0, 0, 7, 1},
             std::vector<uint8_t>{0, 0, 0, 0, 0, 0, 0, 0, 1, 1});
  score.add(second);
  CHECK(score.samples() == 2);
  CHECK(score.precision() == doctest::Approx(3.0 / 4));
  CHECK(score.recall() == doctest::Approx(3.0 / 5));
  CHECK(score.f1() == doctest::Approx(2 * (0.75 * 0.6) / (0.75 + 0.6)));
  CHECK(score.iou() == doctest::Approx(3.0 / 6));
  CHECK(score.kept() == doctest::Approx((0.5 + 0.2) / 2));
  CHECK(std::isnan(MaskScore().f1()));
  MaskScore nothing;
  nothing.add(std::vector<uint8_t>{0}, std::vector<uint8_t>{1});
  CHECK(std::isnan(nothing.precision()));
  CHECK(nothing.f1() == 0);
  CHECK_THROWS_AS(nothing.add(std::vector<uint8_t>{1}, std::vector<uint8_t>{1, 0}), Error);
  CHECK_THROWS_AS(nothing.add({}, {}), Error);
}

TEST_CASE("a log step is one line of JSON") {
  const Scratch scratch;
  MetricsLog log(scratch / "run");
  log.write(step(10, 0.25));
  log.write(step(20, INFINITY));
  CHECK(contents(scratch / "run/metrics.jsonl") ==
        "{\"step\":10,\"epoch\":0.5,\"loss\":0.25,\"a\":2.0}\n"
        "{\"step\":20,\"epoch\":0.5,\"loss\":null,\"a\":2.0}\n");
  const std::vector<StepMetrics> read = read_metrics(scratch / "run/metrics.jsonl");
  REQUIRE(read.size() == 2);
  CHECK(read[0].numbers == step(10, 0.25).numbers);
  CHECK(std::isnan(read[1].numbers[0].second));
}

TEST_CASE("a resumed run drops the steps that come after, a new one all") {
  const Scratch scratch;
  const auto file = scratch / "run/metrics.jsonl";
  {
    MetricsLog log(scratch / "run");
    for (const int number : {0, 10, 20, 30}) log.write(step(number, 1.0 / 3));
  }
  const std::string whole = contents(file);
  std::ofstream(file, std::ios::app) << "{\"step\": 40, \"lo";  // torn
  { MetricsLog log(scratch / "run", 30); }
  CHECK(contents(file) == whole);
  {
    MetricsLog log(scratch / "run", 15);
    CHECK(steps_of(read_metrics(file)) == std::vector<int64_t>{0, 10});
    log.write(step(16, 0));
  }
  CHECK(steps_of(read_metrics(file)) == std::vector<int64_t>{0, 10, 16});
  CHECK(whole.starts_with(contents(file).substr(0, 60)));
  { MetricsLog log(scratch / "run"); }
  CHECK(contents(file).empty());
}

TEST_CASE("a broken log is an error, and stays as it was") {
  const Scratch scratch;
  for (const char* line :
       {"{", "[]", "{\"step\": 1.5}", "{\"epoch\": 1}", "{\"step\": -1}", "{\"step\": 18446744073709551615}",
        "{\"step\": 1, \"loss\": \"low\"}", "{\"step\": 1, \"loss\": {}}"}) {
    const std::string text = concat("{\"step\": 1}\n", line, "\n{\"step\": 2}\n");
    scratch.write("run/metrics.jsonl", text);
    const std::string error = error_of([&] { MetricsLog(scratch / "run", 2); });
    CHECK_MESSAGE(error.find("metrics.jsonl:2: ") != std::string::npos, line, error);
    CHECK(contents(scratch / "run/metrics.jsonl") == text);
    // Nothing later was taken back either.
    CHECK(std::distance(std::filesystem::directory_iterator(scratch / "run"), {}) == 1);
  }
  scratch.write("run/metrics.jsonl", "{\"step\": 1}\n{\n");  // broken, but not torn
  CHECK(error_of([&] { read_metrics(scratch / "run/metrics.jsonl"); }).find(":2: ") != std::string::npos);
}
