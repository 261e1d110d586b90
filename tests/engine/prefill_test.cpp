// Prompts go through encoder and layers in steps: what comes out is what comes out at once.
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <algorithm>

#include "builtin.h"
#include "glimpse/base/check.h"
#include "glimpse/engine/prefill.h"
#include "golden_case.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;
using test::row_request;
using test::tiny_engine;

namespace {

Sequence sequence_of(const Request& request, const std::string& prune) {
  Sequence sequence;
  sequence.prompt = tiny_engine().model().prompt(request.messages, request.media, {});
  sequence.pruners = make_pruners(prune, tiny_engine().pruner_context());
  return sequence;
}

// A prompt of text alone with `rows` rows.
Request long_text(int64_t rows) {
  Request request;
  request.messages = {test::user("")};
  const auto fixed = std::ssize(tiny_engine().model().prompt(request.messages, {}, {}).ids);
  request.messages = {test::user(std::string(rows - fixed, '7'))};
  return request;
}

void expect_near(const at::Tensor& got, const at::Tensor& expected) {
  CHECK(test::difference(got, expected) < 1e-4 * test::fp32_slack());  // products of other sizes
}

void expect_same(const Sequence& got, const Sequence& expected) {
  CHECK(got.kept == expected.kept);
  CHECK(at::equal(got.position_ids, expected.position_ids));
  CHECK(got.cache.bytes() == expected.cache.bytes());
  REQUIRE(got.cache.layers.size() == expected.cache.layers.size());
  for (size_t l = 0; l < got.cache.layers.size(); ++l) {
    REQUIRE(got.cache.layers[l].length() == expected.cache.layers[l].length());
    expect_near(got.cache.layers[l].keys(), expected.cache.layers[l].keys());
    expect_near(got.cache.layers[l].values(), expected.cache.layers[l].values());
  }
}

at::Tensor run(PrefillBatch& batch, const Observer& observe = {}) {
  while (!batch.done()) CHECK(batch.step(observe).empty());
  return batch.finish();
}

// Reads attention of an encoder block that does not exist.
class Wrong : public Pruner {
 public:
  std::string name() const override { return "wrong"; }
  nlohmann::json settings() const override { return {}; }
  std::vector<Cut> cuts() const override { return {{Cut::Place::after, 2, true}}; }
  Taps taps() const override {
    Taps taps;
    taps.vision_attention = {{99}};
    return taps;
  }
  Selection select(const View&, const Cut&, const Budget&) const override { return {}; }
};

// Fails when it is asked.
class Failing : public Pruner {
 public:
  std::string name() const override { return "failing"; }
  nlohmann::json settings() const override { return {}; }
  std::vector<Cut> cuts() const override { return {{Cut::Place::after, 2, true}}; }
  Selection select(const View&, const Cut&, const Budget&) const override { fail("nothing fits"); }
};

// Adds up what tensors of this thread allocate and free.
class Counted : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void*, int64_t size, size_t, size_t, c10::Device) override {
    live_ += size;
    peak_ = std::max(peak_, live_);
  }
  bool memoryProfilingEnabled() const override { return true; }
  int64_t peak() const { return peak_; }

 private:
  int64_t live_ = 0, peak_ = 0;
};

// The most that tensors take during f(), in bytes.
template <class Function>
double peak_bytes(Function f) {
  const auto counted = std::make_shared<Counted>();
  const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, counted);
  f();
  return static_cast<double>(counted->peak());
}

}  // namespace

TEST_CASE("an encoder that a scout cuts is kept before that cut, for other questions about its images") {
  const char* prune = "scout(encoder=2)+glimpse";
  PrefixCache cache(size_t{64} << 20);
  const auto run_row = [&](int row, PrefixCache* with, int expected_steps) {
    Sequence sequence = sequence_of(row_request(row), prune);
    PrefillBatch batch(tiny_engine().model(), with);
    batch.add(sequence);
    int steps = 0;
    for (; !batch.started(); ++steps) CHECK(batch.step().empty());
    CHECK(steps == expected_steps);
    const at::Tensor logits = run(batch);
    return std::pair(logits, sequence.kept);
  };
  const auto same = [](const auto& got, const auto& expected) {
    CHECK(got.second == expected.second);
    CHECK(at::equal(got.first, expected.first));
  };
  for (const int row : {0, 1, 0}) {  // of one image
    CAPTURE(row);
    // Of 6 blocks 3 lie before the cut.
    same(run_row(row, &cache, cache.size() == 0 ? 6 : 3), run_row(row, nullptr, 6));
    CHECK(cache.size() == 1);
    const size_t width = 128, patches = 4 * 256;
    CHECK(cache.bytes() > patches * width * sizeof(float));
  }
  run_row(8, &cache, 6);  // another image
  CHECK(cache.size() == 2);
}

TEST_CASE("blocks of rows are about equally large and never small") {
  for (const int64_t rows : {1, 31, 32, 33, 65, 100, 2047, 2048, 2049, 4097, 18001})
    for (const int64_t most : {32, 100, 2048}) {
      CAPTURE(rows);
      CAPTURE(most);
      int64_t sum = 0, least = rows, blocks = 0;
      for_each_block(rows, most, [&](int64_t first, int64_t count) {
        CHECK(first == sum);
        CHECK(count <= most);
        least = std::min(least, count);
        sum += count;
        ++blocks;
      });
      CHECK(sum == rows);
      CHECK(blocks == (rows + most - 1) / most);
      CHECK(least >= std::min(rows, most / 2));
    }
  for_each_block(0, 32, [](int64_t, int64_t) { CHECK(false); });
}

TEST_CASE("layers in blocks of rows equal whole layers, and observers see these whole") {
  for (const char* prune : {"none", "glimpse", "pyramiddrop", "vscan", "cdpruner", "divprune+glimpse"}) {
    CAPTURE(prune);
    Sequence whole[] = {sequence_of(row_request(0), prune), sequence_of(row_request(9), prune)};
    std::vector<at::Tensor> layers;
    const at::Tensor expected = prefill(tiny_engine().model(), std::vector<Sequence*>{&whole[0], &whole[1]},
                                        [&](int64_t, const at::Tensor& x) { layers.push_back(x.clone()); });
    for (const int64_t block : {1, 50, 300}) {
      CAPTURE(block);
      Sequence parts[] = {sequence_of(row_request(0), prune), sequence_of(row_request(9), prune)};
      PrefillBatch batch(tiny_engine().model(), nullptr, block);
      for (Sequence& part : parts) batch.add(part);
      int64_t next = 0, left = batch.rows_left();
      while (!batch.done()) {
        if (batch.started()) CHECK(batch.step_rows() <= std::max<int64_t>(block, 32));
        CHECK(batch
                  .step([&](int64_t layer, const at::Tensor& x) {
                    CHECK(layer == next++);
                    expect_near(x, layers.at(layer));
                  })
                  .empty());
        CHECK(batch.rows_left() < left);
        left = batch.rows_left();
      }
      CHECK(next == 6);
      CHECK(left == 0);
      expect_near(batch.finish(), expected);
      for (int i = 0; i < 2; ++i) expect_same(parts[i], whole[i]);
    }
  }
}

TEST_CASE("a prompt longer than a block") {
  const Request request = long_text(3000);
  Sequence parts = sequence_of(request, "none"), whole = sequence_of(request, "none");
  const at::Tensor got = prefill(tiny_engine().model(), std::vector<Sequence*>{&parts});
  PrefillBatch batch(tiny_engine().model(), nullptr, 3000);
  batch.add(whole);
  expect_near(got, run(batch));
  expect_same(parts, whole);
}

TEST_CASE("sequences that leave in the middle of a layer, or of the encoder") {
  const int rows[] = {0, 9, 16};
  std::vector<Sequence> alone;
  std::vector<at::Tensor> logits;
  for (const int row : rows) alone.push_back(sequence_of(row_request(row), "glimpse"));
  for (Sequence& each : alone)
    logits.push_back(prefill(tiny_engine().model(), std::vector<Sequence*>{&each}));
  // Some 285 rows each: after two blocks of 200 the second one is under way.
  for (const int blocks : {-8, 0, 1, 2, 3, 4, 7})
    for (const std::vector<int>& leaving : {std::vector{0}, {1}, {2}, {1, 2}, {2, 0}}) {
      CAPTURE(blocks);
      CAPTURE(leaving);
      PrefillBatch batch(tiny_engine().model(), nullptr, 200);
      std::vector<Sequence> sequences;
      for (const int row : rows) sequences.push_back(sequence_of(row_request(row), "glimpse"));
      for (Sequence& each : sequences) batch.add(each);
      if (blocks < 0)
        for (int i = 0; i < -blocks; ++i) batch.step();
      while (blocks >= 0 && !batch.started()) batch.step();
      for (int i = 0; i < blocks; ++i) batch.step();
      for (const int i : leaving) {
        batch.remove(sequences[i]);
        sequences[i] = {};
      }
      const at::Tensor got = run(batch);
      CHECK(got.size(0) == 3 - std::ssize(leaving));
      int64_t row = 0;
      for (int i = 0; i < 3; ++i) {
        if (std::find(leaving.begin(), leaving.end(), i) != leaving.end()) continue;
        expect_near(got[row++], logits[i][0]);
        expect_same(sequences[i], alone[i]);
      }
    }
}

TEST_CASE("a batch that all have left is done; nobody joins one that has started") {
  Sequence one = sequence_of(row_request(0), "glimpse"), other = sequence_of(row_request(1), "glimpse");
  for (const int steps : {0, 3, 8}) {
    PrefillBatch batch(tiny_engine().model());
    batch.add(one);
    for (int i = 0; i < steps; ++i) batch.step();
    CHECK(batch.started() == (steps == 8));
    if (steps == 8) CHECK_THROWS_AS(batch.add(other), std::logic_error);
    batch.remove(one);
    CHECK(batch.empty());
    CHECK(batch.done());
    CHECK(batch.step_rows() == 0);
    CHECK(batch.rows_left() == 0);
  }
}

TEST_CASE("a sequence that cannot join leaves the batch as it was") {
  Sequence wrong = sequence_of(row_request(0), "none"), right = sequence_of(row_request(1), "glimpse"),
           alone = sequence_of(row_request(1), "glimpse");
  wrong.pruners = {std::make_shared<Wrong>()};
  PrefillBatch batch(tiny_engine().model());
  batch.add(right);
  CHECK_THROWS_WITH_AS(batch.add(wrong), doctest::Contains("the attention of block 99 was asked for"), Error);
  wrong = {};
  const at::Tensor got = run(batch);
  CHECK(at::equal(got, prefill(tiny_engine().model(), std::vector<Sequence*>{&alone})));
}

TEST_CASE("a sequence that fails leaves the batch alone") {
  Sequence wrong = sequence_of(row_request(0), "none"), right = sequence_of(row_request(0), "glimpse");
  wrong.pruners = {std::make_shared<Failing>()};
  for (const int64_t block : {64, 2048}) {
    PrefillBatch batch(tiny_engine().model(), nullptr, block);
    batch.add(wrong);
    batch.add(right);
    size_t failures = 0;
    while (!batch.done())
      for (const auto& failure : batch.step()) {
        ++failures;
        CHECK(failure.sequence == &wrong);
        CHECK_THROWS_WITH_AS(std::rethrow_exception(failure.error), "nothing fits", Error);
      }
    CHECK(failures == 1);
    CHECK(batch.finish().size(0) == 1);
  }
}

TEST_CASE("the encoder goes block by block, and takes the patches with it") {
  Sequence sequence = sequence_of(row_request(0), "glimpse");
  const VisionTaps taps(std::vector<int64_t>{1, 5});
  const VisionOutput whole = tiny_engine().model().encode(sequence.prompt.patches, taps);
  const auto encoding = tiny_engine().model().encoding(sequence.prompt.patches, taps);
  const c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl> pixels(
      sequence.prompt.patches[0].pixel_values.getIntrusivePtr());
  sequence.prompt.patches.clear();
  CHECK(!pixels.expired());
  for (int64_t left = 6; left > 0; --left) {
    CHECK(encoding->steps() == left);
    encoding->step();
    CHECK(pixels.expired());
  }
  CHECK(encoding->steps() == 0);
  const VisionOutput got = encoding->finish();
  CHECK(at::equal(got.embeds, whole.embeds));
  CHECK(got.windows == whole.windows);
  for (size_t i = 0; i < 2; ++i) CHECK(at::equal(got.states[i], whole.states[i]));
}

// What the fused attention of other devices takes on its way is not ours.
TEST_CASE("the encoder holds few numbers per patch" * doctest::skip(!test::on_cpu())) {
  const int64_t images = 4, patches = 64 * 64, width = tiny_engine().model().vision_width();
  const std::vector<Patches> all(images, {at::zeros({patches, 3 * 2 * 14 * 14}), {1, 64, 64}});
  VisionTaps taps;
  taps.states = {2};
  taps.attention = {{-1}, {2, true}};
  const double bytes = peak_bytes([&] { tiny_engine().model().encode(all, taps); });
  const double held = bytes / static_cast<double>(images * patches * width * int64_t{sizeof(float)});
  // Hidden states, queries, keys, values, their mix, tables; blocks of the rest, which are a quarter of the
  // rows here.
  CHECK(held > 5);
  CHECK(held < 7);
}

TEST_CASE("a long prompt's layers hold few numbers per row" * doctest::skip(!test::on_cpu())) {
  const Request request = long_text(4000);
  const auto held = [&](int64_t block) {
    Sequence sequence = sequence_of(request, "none");
    const double bytes = peak_bytes([&] {
      PrefillBatch batch(tiny_engine().model(), nullptr, block);
      batch.add(sequence);
      run(batch);
    });
    return bytes - static_cast<double>(sequence.cache.bytes());
  };
  const double hidden = 4000 * 256 * sizeof(float);
  CHECK(held(4000) > 8 * hidden);
  CHECK(held(250) < 3 * hidden);
}
