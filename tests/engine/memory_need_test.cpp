// What a model needs of memory, told beforehand, and what there is.
#include "glimpse/engine/memory_need.h"

#include "builtin.h"
#include "engine/machine_files.h"
#include "glimpse/base/check.h"
#include "glimpse/engine/engine.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;
using test::MachineFiles;

namespace {

MemoryNeed need_of(const std::string& weights, KvFormat kv = KvFormat::plain) {
  EngineOptions options;
  options.weights = weights;
  const auto source = model_source(options);
  MemoryNeed need(*source, load_options(options, source->config()), kv);
  need.vision = vision_shape(source->config(), source->path());
  return need;
}

constexpr uint64_t kMib = 1 << 20;

}  // namespace

TEST_CASE("weights as they would be loaded") {
  // models/tiny/README.md: 5.52 million parameters, of them 5.44 million in linear layers; the head, which is
  // the embedding in bf16, is rounded by itself.
  const MemoryNeed stored = need_of("auto"), eight = need_of("int8"), four = need_of("int4");
  CHECK(stored.weights == doctest::Approx(11.05e6).epsilon(0.01));
  CHECK(stored.mapped == stored.weights);
  CHECK(eight.weights == doctest::Approx(5.9e6).epsilon(0.05));
  CHECK(four.weights == doctest::Approx(3.6e6).epsilon(0.03));
  CHECK(eight.mapped < kMib);
}

TEST_CASE("a token's keys and values are what an engine's cache holds") {
  // 6 layers, 2 heads of 64, keys and values.
  CHECK(need_of("auto").kv_token == 6 * 2 * 64 * 2 * 2);
  CHECK(need_of("auto", KvFormat::int8).kv_token == 6 * 2 * 64 * 2 * 34 / 32);
  CHECK(need_of("auto", KvFormat::int4).kv_token == 6 * 2 * 64 * 2 * 18 / 32);
}

TEST_CASE("the largest image is the one that just fits") {
  const MemoryNeed need = need_of("auto");
  CHECK(need.token_pixels() == 28 * 28);
  CHECK(need.largest_image(0) == 0);
  for (const uint64_t bytes : {kMib, 30 * kMib, 3000 * kMib}) {
    const int64_t tokens = need.largest_image(bytes);
    CHECK(need.image(tokens) <= bytes);
    CHECK(need.image(tokens + 1) > bytes);
  }
}

TEST_CASE("the memory that there is") {
  MachineFiles root;
  CHECK(!available_memory(root.dir()));
  root.with("proc/meminfo", "MemTotal:  16000 kB\nMemAvailable:    8000 kB\nSwapFree: 1 kB\n");
  CHECK(available_memory(root.dir()) == 8000 * 1024);
  // A container's limit, of which files' pages that nobody needs count as free.
  root.with("proc/self/cgroup", "0::/user/job\n");
  root.with("sys/fs/cgroup/user/job/memory.max", "max\n");
  CHECK(available_memory(root.dir()) == 8000 * 1024);
  root.with("sys/fs/cgroup/user/memory.max", "5000000\n");
  root.with("sys/fs/cgroup/user/memory.current", "4000000\n");
  CHECK(available_memory(root.dir()) == 1000000);
  root.with("sys/fs/cgroup/user/memory.stat", "anon 5\ninactive_file 2500000\nactive_file 7\n");
  CHECK(available_memory(root.dir()) == 3500000);
  root.with("sys/fs/cgroup/user/memory.current", "9000000\n");
  CHECK(available_memory(root.dir()) == 0);
  for (const char* odd : {"", "a lot", "18446744073709551615", "99999999999999999999999999"}) {
    root.with("sys/fs/cgroup/user/memory.max", odd);
    CHECK(available_memory(root.dir()) == 8000 * 1024);
  }
}

TEST_CASE("the memory that version 1 says") {
  MachineFiles root;
  root.with("proc/self/cgroup", "5:memory:/docker/12\n1:name=systemd:/\n");
  root.with("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  CHECK(!available_memory(root.dir()));
  root.with("sys/fs/cgroup/memory/memory.limit_in_bytes", "3000000\n")
      .with("sys/fs/cgroup/memory/memory.usage_in_bytes", "1000000\n")
      .with("sys/fs/cgroup/memory/memory.stat", "inactive_file 5\ntotal_inactive_file 400000\n");
  CHECK(available_memory(root.dir()) == 2400000);
}
