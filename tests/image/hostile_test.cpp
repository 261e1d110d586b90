#include <sys/resource.h>

#include <cstring>
#include <nlohmann/json.hpp>
#include <random>

#include "glimpse/base/check.h"
#include "glimpse/image/decode.h"
#include "image/golden_arrays.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;
using Bytes = std::vector<uint8_t>;
using nlohmann::json;

namespace {

const auto folder = test::data_root / "images";

std::string error_of(const Bytes& bytes, const DecodeOptions& options = {}) {
  try {
    decode_image(bytes, "given", options);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

Bytes text(std::string_view characters) {
  return {characters.begin(), characters.end()};
}

bool contains(const std::string& whole, const std::string& part) {
  return whole.find(part) != whole.npos;
}

/// PNG header of that size, its checksum included, and nothing after it.
Bytes png_header(uint32_t width, uint32_t height) {
  Bytes bytes = text(std::string_view("\x89PNG\r\n\x1a\n\0\0\0\rIHDR", 16));
  for (const uint32_t side : {width, height})
    for (int shift = 24; shift >= 0; shift -= 8) bytes.push_back(static_cast<uint8_t>(side >> shift));
  for (const int field : {8, 2, 0, 0, 0}) bytes.push_back(static_cast<uint8_t>(field));
  uint32_t crc = ~0u;
  for (size_t i = 12; i < bytes.size(); ++i) {
    crc ^= bytes[i];
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (crc & 1 ? 0xEDB88320u : 0);
  }
  for (int shift = 24; shift >= 0; shift -= 8) bytes.push_back(static_cast<uint8_t>(~crc >> shift));
  const Bytes data = text(std::string_view("\0\0\0\4IDAT", 8));
  bytes.insert(bytes.end(), data.begin(), data.end());
  return bytes;
}

long peak_memory_kib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss;
}

std::vector<std::string> all_files() {
  std::vector<std::string> files;
  for (const json& entry : test::read_json(folder / "index.json")) files.push_back(entry.at("file"));
  return files;
}

}  // namespace

TEST_CASE("a picture beyond the limit is refused before memory is taken") {
  const long before = peak_memory_kib();
  const std::string message = error_of(png_header(60000, 60000));
  CHECK(contains(message, "given: the PNG image is 60000 x 60000 pixels; at most 178956970 pixels"));
  CHECK(contains(error_of(png_header(0x7FFFFFFF, 0x7FFFFFFF)), "at most"));
  CHECK(peak_memory_kib() - before < 64 * 1024);

  // The same claim in the other formats.
  const auto patched = [](const char* file, size_t offset, Bytes value) {
    Bytes bytes = test::read_bytes(folder / file);
    std::copy(value.begin(), value.end(), bytes.begin() + offset);
    return error_of(bytes);
  };
  CHECK(contains(patched("gif_plain.gif", 6, {0x60, 0xEA, 0x60, 0xEA}), "GIF image is 60000 x 60000"));
  CHECK(contains(patched("bmp_rgb.bmp", 18, {0x60, 0xEA, 0, 0, 0x60, 0xEA, 0, 0}),
                 "BMP image is 60000 x 60000"));
  CHECK(contains(patched("bmp_rgb.bmp", 18, {0xFF, 0xFF, 0xFF, 0x7F, 0, 0, 0, 0x80}),
                 "2147483647 x 2147483648"));
  CHECK(contains(patched("tga.tga", 12, {0x60, 0xEA, 0x60, 0xEA}), "TGA image is 60000 x 60000"));
  CHECK(contains(error_of(text("P6 60000 60000 255 ")), "PPM image is 60000 x 60000"));
  CHECK(contains(error_of(text("P6 9000 9000 255 ")), "the file ends too early"));
  const auto claimed = [](const char* file, Bytes sides) {
    Bytes bytes = test::read_bytes(folder / file);
    const std::string_view box = "ispe";
    const auto found = std::search(bytes.begin(), bytes.end(), box.begin(), box.end());
    std::copy(sides.begin(), sides.end(), found + 8);
    return error_of(bytes);
  };
  CHECK(contains(claimed("avif.avif", {0, 0, 0xEA, 0x60, 0, 0, 0xEA, 0x60}), "60000"));
  CHECK(contains(claimed("heic.heic", {0, 0, 0xEA, 0x60, 0, 0, 0xEA, 0x60}), "60000"));
  for (const Bytes& sides : {Bytes{0, 0, 0, 2, 0, 0, 0, 2}, Bytes{0, 0, 0x10, 0, 0, 0, 0x10, 0}})
    CHECK(contains(claimed("avif.avif", sides), "not of the size that its header gives"));
  Bytes jpeg = test::read_bytes(folder / "jpeg_420.jpg");
  const Bytes frame_start = {0xFF, 0xC0};
  const auto at = std::search(jpeg.begin(), jpeg.end(), frame_start.begin(), frame_start.end());
  const Bytes side = {0xEA, 0x60, 0xEA, 0x60};
  std::copy(side.begin(), side.end(), at + 5);
  CHECK(contains(error_of(jpeg), "JPEG image is 60000 x 60000"));
  CHECK(peak_memory_kib() - before < 64 * 1024);
}

TEST_CASE("what is no picture is named") {
  CHECK(contains(error_of({}), "given: the image is empty"));
  CHECK(contains(error_of(text("\n <!DOCTYPE html><html></html>")), "HTML"));
  CHECK(contains(error_of(text("hello")),
                 "known are JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, HEIC, ICO, PPM and TGA"));
  CHECK(contains(error_of(text("hello")), "68 65 6c 6c 6f"));
  const auto box = [](std::string_view kind) { return text(std::string("\0\0\0\x1c", 4).append(kind)); };
  CHECK(contains(error_of(box("ftypisom")), "is a video"));
  CHECK(contains(error_of(box("ftypavif")), "damaged, truncated or unsupported AVIF"));
  CHECK(contains(error_of(box("ftypheic")), "damaged, truncated or unsupported HEIC"));
  CHECK(contains(error_of(text("version https://git-lfs.github.com/spec/v1")), "Git LFS"));
  for (const auto* magic : {"\xFF\xD8\xFF", "\x89PNG\r\n\x1a\n", "RIFF1234WEBP", "GIF89a", "BM"})
    CHECK(contains(error_of(text(magic)), "damaged, truncated or unsupported"));
  CHECK(contains(error_of(text(std::string_view("II*\0", 4))), "damaged, truncated or unsupported TIFF"));
}

TEST_CASE("a file cut anywhere is an error or still gives the whole picture") {
  DecodeOptions options;
  options.max_pixels = 100'000;
  for (const std::string& file : all_files()) {
    const Bytes whole = test::read_bytes(folder / file);
    const Image expected = decode_image(whole, file);
    int refused = 0, cuts = 0;
    const size_t step = std::max<size_t>(1, whole.size() / 60);
    for (size_t size = 0; size < whole.size(); size += step, ++cuts) {
      CAPTURE(concat(file, " cut to ", size, " of ", whole.size()));
      try {
        const Image image = decode_image({whole.begin(), whole.begin() + size}, file, options);
        // Only what stands after the pixels (other frames, metadata) may be missing.
        const bool lost_orientation = file == "exif_6.webp" && image.width == expected.height;
        const bool same = image.rgb == expected.rgb || lost_orientation;
        CHECK(same);
      } catch (const Error& error) {
        ++refused;
        CHECK(contains(error.what(), file));
      }
    }
    CAPTURE(file);
    CHECK(refused >= cuts / 3);
  }
}

TEST_CASE("flipped bytes never do more than throw") {
  std::mt19937 random(7);
  DecodeOptions options;
  options.max_pixels = 200'000;
  int decoded = 0, refused = 0;
  for (const std::string& file : all_files()) {
    const Bytes whole = test::read_bytes(folder / file);
    for (int round = 0; round < 40; ++round) {
      Bytes bytes = whole;
      // Half of the rounds aim at the headers.
      const size_t reach = round % 2 ? bytes.size() : std::min<size_t>(bytes.size(), 64);
      for (int flips = 1 + static_cast<int>(random() % 4); flips > 0; --flips)
        bytes[random() % reach] = static_cast<uint8_t>(random());
      try {
        const Image image = decode_image(bytes, file, options);
        CHECK(image.rgb.size() == size_t(image.width) * image.height * 3);
        ++decoded;
      } catch (const Error&) {
        ++refused;
      }
    }
  }
  CHECK(decoded > 100);
  CHECK(refused > 100);
}
