#include "glimpse/train/event_file.h"

#include <cstdlib>

#include "glimpse/train/metrics.h"
#include "io/scratch.h"

using namespace glimpse;
using glimpse::test::contents;
using glimpse::test::error_of;
using glimpse::test::Scratch;

namespace {

/// A run that was stopped after step 30 and goes on after step 20; read by tests/parity/read_events.py.
void write_run(const std::filesystem::path& folder) {
  const auto log = [](MetricsLog& out, int64_t step, double loss) {
    StepMetrics metrics{.step = step, .epoch = static_cast<double>(step) / 40};
    metrics.add("loss", loss);
    metrics.add("lr", 1e-4);
    metrics.add("val/f1", step == 40 ? NAN : 1.0 / static_cast<double>(step));
    out.write(metrics);
  };
  {
    MetricsLog first(folder);
    for (const int step : {0, 10, 20, 30}) log(first, step, 1 - step * 0.01);
  }
  MetricsLog second(folder, 20);
  for (const int step : {30, 40}) log(second, step, -1e-3 * step);
}

}  // namespace

TEST_CASE("a run for TensorBoard") {
  if (const char* folder = std::getenv("GLIMPSE_EVENTS_DIR")) return write_run(folder);
  const Scratch scratch;
  write_run(scratch / "run");
  size_t event_files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(scratch / "run")) {
    if (!entry.path().filename().string().starts_with("events.out.tfevents.")) continue;
    ++event_files;
    // Records of a length, its checksum, the data, their checksum.
    const std::string bytes = contents(entry.path());
    size_t at = 0, records = 0;
    for (; at + 16 <= bytes.size(); ++records) {
      const std::string data =
          bytes.substr(at + 12, static_cast<uint8_t>(bytes[at]) | static_cast<uint8_t>(bytes[at + 1]) << 8 |
                                    static_cast<uint8_t>(bytes[at + 2]) << 16);
      if (records == 0) CHECK(data.find("brain.Event:2") != std::string::npos);
      at += 16 + data.size();
    }
    CHECK(at == bytes.size());
    CHECK(records >= 10);
  }
  CHECK(event_files == 2);
}

TEST_CASE("what an event file refuses") {
  const Scratch scratch;
  EventFile file(scratch / "run");
  CHECK(error_of([] { EventFile("/proc/nothing"); }).find("cannot make the folder /proc/nothing") == 0);
  CHECK(error_of([&] { EventFile(file.path()); }).find("cannot ") == 0);
}
