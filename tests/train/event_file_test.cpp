#include "glimpse/train/event_file.h"

#include <cstdlib>

#include "glimpse/image/decode.h"
#include "glimpse/image/overlay.h"
#include "glimpse/train/metrics.h"
#include "io/scratch.h"

using namespace glimpse;
using glimpse::test::contents;
using glimpse::test::error_of;
using glimpse::test::Scratch;

namespace {

Image gradient(int width, int height) {
  Image image{width, height, std::vector<uint8_t>(size_t(width) * height * 3)};
  for (size_t i = 0; i < image.rgb.size(); ++i) image.rgb[i] = static_cast<uint8_t>(i * 7);
  return image;
}

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
    save_png(gradient(5, 3), folder / "first.png");
    first.events().image("row 7", gradient(5, 3), 0);
    first.events().image("row 7", gradient(9, 9), 30);
    first.events().text("question", "What is *this* \xc3\xa4?", 0);
    first.events().flush();
  }
  MetricsLog second(folder, 20);
  for (const int step : {30, 40}) log(second, step, -1e-3 * step);
  save_png(gradient(300, 200), folder / "second.png");
  const std::string png = contents(folder / "second.png");
  second.events().image("row 7", {reinterpret_cast<const uint8_t*>(png.data()), png.size()}, 40);
  second.events().flush();
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
    CHECK(records >= 11);
  }
  CHECK(event_files == 2);
}

TEST_CASE("what an event file refuses") {
  const Scratch scratch;
  EventFile file(scratch / "run");
  const std::vector<uint8_t> text(40, 'x'), shorter = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n', 0};
  CHECK(error_of([&] { file.image("a", text, 0); }) == "a: not a PNG (40 bytes)");
  CHECK(error_of([&] { file.image("a", shorter, 0); }) == "a: not a PNG (9 bytes)");
  CHECK(error_of([&] { file.image("a", Image{}, 0); }).find("cannot write a picture of 0 x 0") !=
        std::string::npos);
  CHECK(error_of([] { EventFile("/proc/nothing"); }).find("cannot make the folder /proc/nothing") == 0);
  CHECK(error_of([&] { EventFile(file.path()); }).find("cannot ") == 0);
}

TEST_CASE("a picture's PNG bytes read back the same") {
  const Image image = gradient(7, 4);
  CHECK(decode_image(encode_png(image), "png").rgb == image.rgb);
}
