// Compares with Pillow: the pictures come from make_pictures.py, in the folder that GLIMPSE_PICTURES names.
#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <random>

#include "glimpse/base/check.h"
#include "glimpse/image/decode.h"

#undef CHECK
#include <doctest/doctest.h>

namespace {

using namespace glimpse;
using nlohmann::json;

std::filesystem::path folder() {
  const char* path = std::getenv("GLIMPSE_PICTURES");
  REQUIRE_MESSAGE(path != nullptr, "GLIMPSE_PICTURES must name the folder that make_pictures.py wrote");
  return path;
}

json index() {
  std::ifstream stream(folder() / "index.json");
  return json::parse(stream);
}

std::vector<uint8_t> read(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

struct Difference {
  int worst = 0;
  size_t where = 0;
};

/// The largest difference of two bytes; 256 when the sizes differ.
Difference difference(const std::vector<uint8_t>& a, const std::vector<uint8_t>& b) {
  if (a.size() != b.size()) return {256};
  Difference largest;
  for (size_t i = 0; i < a.size(); ++i)
    if (const int difference = std::abs(a[i] - b[i]); difference > largest.worst) largest = {difference, i};
  return largest;
}

/// What is wrong with the decoded picture, nothing when it is as expected.
std::string fault(const json& entry, const std::string& expected_suffix, const DecodeOptions& options) {
  const auto file = folder() / entry.at("file").get<std::string>();
  const std::vector<uint8_t> expected = read(file.string() + expected_suffix);
  Image image;
  try {
    image = load_image(file, options);
  } catch (const Error& error) {
    return error.what();
  }
  if (image.width != entry.at("width") || image.height != entry.at("height"))
    return concat("its size is ", image.width, " x ", image.height);
  const auto [worst, where] = difference(image.rgb, expected);
  if (worst <= entry.at("tolerance").get<int>()) return "";
  return concat("differs by ", worst, " at x ", where / 3 % image.width, ", y ", where / 3 / image.width);
}

}  // namespace

TEST_CASE("pictures are decoded as Pillow decodes them") {
  std::map<std::string, int> of_format;
  DecodeOptions without_alpha;
  without_alpha.alpha_over_white = false;
  for (const json& entry : index()) {
    const std::string file = entry.at("file");
    ++of_format[file.substr(file.rfind('.'))];
    CAPTURE(file);
    CHECK(fault(entry, ".rgb", without_alpha) == "");
    CHECK(fault(entry, ".white", {}) == "");
  }
  CHECK(of_format.size() == 10);
  for (const auto& [extension, count] : of_format) {
    CAPTURE(extension);
    CHECK(count >= 10);
  }
}

TEST_CASE("a picture cut anywhere is refused or whole") {
  DecodeOptions options;
  options.apply_orientation = false;  // what says it may stand behind the pixels
  options.max_pixels = 100'000;
  int refused = 0;
  for (const json& entry : index()) {
    const std::string file = entry.at("file");
    const std::vector<uint8_t> whole = read(folder() / file);
    options.alpha_over_white = !file.ends_with(".tga");  // a TGA file's last bytes can deny its alpha
    const Image expected = decode_image(whole, file, options);
    constexpr size_t cuts = 24;
    for (size_t i = 0; i < cuts; ++i) {
      // Half of the cuts are near the end, where it matters most.
      const size_t size = i % 2 ? whole.size() - std::min(whole.size(), i) : whole.size() * i / cuts;
      if (file.ends_with(".pnm") && size + 10 > whole.size()) continue;  // a number can lose a digit unseen
      CAPTURE(concat(file, " cut to ", size, " of ", whole.size()));
      try {
        const Image image = decode_image({whole.begin(), whole.begin() + size}, file, options);
        CHECK(difference(image.rgb, expected.rgb).worst == 0);
      } catch (const Error&) {
        ++refused;
      }
    }
  }
  CHECK(refused > 1000);
}

TEST_CASE("a picture with wrong bytes is decoded or refused") {
  std::mt19937 random(11);
  DecodeOptions options;
  options.max_pixels = 100'000;
  int refused = 0;
  for (const json& entry : index()) {
    const std::string file = entry.at("file");
    const std::vector<uint8_t> whole = read(folder() / file);
    for (int round = 0; round < 20; ++round) {
      std::vector<uint8_t> bytes = whole;
      const size_t reach = round % 2 ? bytes.size() : std::min<size_t>(bytes.size(), 128);
      for (int flips = 1 + static_cast<int>(random() % 4); flips > 0; --flips)
        bytes[random() % reach] = static_cast<uint8_t>(random());
      try {
        const Image image = decode_image(bytes, file, options);
        CHECK(image.rgb.size() == size_t(image.width) * image.height * 3);
      } catch (const Error&) {
        ++refused;
      }
    }
  }
  CHECK(refused > 1000);
}
