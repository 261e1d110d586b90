#include "glimpse/image/decode.h"

#include <algorithm>
#include <fstream>
#include <iostream>
#include <limits>
#include <sstream>
#include <string_view>
#include <utility>

#include "glimpse/image/decoders.h"

namespace glimpse {
namespace detail {

void check_size(const Source& source, int64_t width, int64_t height) {
  constexpr int64_t max_side = std::numeric_limits<int>::max();
  if (width < 1 || height < 1) damaged(source, "its size is ", width, " x ", height);
  check(width <= max_side && height <= max_side && width <= source.max_pixels / height, source.name, ": the ",
        source.format, " image is ", width, " x ", height, " pixels; at most ", source.max_pixels,
        " pixels are accepted");
}

Pixels make_pixels(const Source& source, int64_t width, int64_t height, int channels) {
  check_size(source, width, height);
  Pixels pixels{static_cast<int>(width), static_cast<int>(height), channels, {}, 1};
  pixels.data.resize(static_cast<size_t>(width) * height * channels);
  return pixels;
}

}  // namespace detail

namespace {

using detail::Bytes;
using detail::Pixels;
using detail::Source;

struct Format {
  const char* name;
  Pixels (*decode)(const Source&);
};

/// Whether `magic` stands at `offset`; '?' matches any byte.
bool has_magic(Bytes bytes, std::string_view magic, size_t offset = 0) {
  if (bytes.size() < offset + magic.size()) return false;
  return std::equal(magic.begin(), magic.end(), bytes.begin() + offset,
                    [](char m, uint8_t b) { return m == '?' || static_cast<uint8_t>(m) == b; });
}

/// What data that is no supported picture seems to be, for the error message.
std::string describe(Bytes bytes) {
  using namespace std::string_view_literals;
  const auto text_start = std::find_if(bytes.begin(), bytes.end(), [](uint8_t b) {
    return b != ' ' && b != '\t' && b != '\r' && b != '\n' && b != 0xEF && b != 0xBB && b != 0xBF;
  });
  if (has_magic({text_start, bytes.end()}, "<"))
    return "looks like an HTML, XML or SVG text, not a picture (a saved error page?)";
  if (has_magic(bytes, "ftyp"sv, 4)) return "is a video";
  if (has_magic(bytes, "%PDF"sv)) return "is a PDF document";
  if (has_magic(bytes, "version https://git-lfs"sv))
    return "is a Git LFS pointer; the picture was not fetched";
  std::ostringstream hex;
  hex << "starts with the bytes" << std::hex;
  for (const uint8_t byte : bytes.first(std::min<size_t>(bytes.size(), 8)))
    hex << (byte < 16 ? " 0" : " ") << static_cast<int>(byte);
  return hex.str();
}

Format format_of(Bytes bytes, const std::string& name) {
  using namespace std::string_view_literals;
  struct Magic {
    std::string_view bytes;
    Format format;
    size_t offset = 0;
  };
  constexpr Format jpeg{"JPEG", detail::decode_jpeg}, png{"PNG", detail::decode_png},
      gif{"GIF", detail::decode_gif}, tiff{"TIFF", detail::decode_tiff}, avif{"AVIF", detail::decode_heif},
      heic{"HEIC", detail::decode_heif};
  static constexpr Magic known[] = {
      {"\xFF\xD8\xFF"sv, jpeg},
      {"\x89PNG\r\n\x1A\n"sv, png},
      {"RIFF????WEBP"sv, {"WebP", detail::decode_webp}},
      {"GIF87a"sv, gif},
      {"GIF89a"sv, gif},
      {"BM"sv, {"BMP", detail::decode_bmp}},
      {"II*\0"sv, tiff},
      {"MM\0*"sv, tiff},
      {"II+\0"sv, tiff},
      {"MM\0+"sv, tiff},
      {"ftypavi"sv, avif, 4},  // and "avis", a sequence
      {"ftyphei"sv, heic, 4},  // heic, heix, heim, heis
      {"ftyphev"sv, heic, 4},  // hevc, hevx: sequences
      {"ftypmif1"sv, {"HEIF", detail::decode_heif}, 4},
      {"ftypmsf1"sv, {"HEIF", detail::decode_heif}, 4},
      {"\0\0\1\0"sv, {"ICO", detail::decode_ico}},
  };
  for (const Magic& magic : known)
    if (has_magic(bytes, magic.bytes, magic.offset)) return magic.format;
  if (bytes.size() > 2 && bytes[0] == 'P' && bytes[1] >= '1' && bytes[1] <= '6' &&
      " \t\n\v\f\r#"sv.find(static_cast<char>(bytes[2])) != std::string_view::npos)
    return {"PPM", detail::decode_pnm};
  if (detail::is_tga(bytes)) return {"TGA", detail::decode_tga};  // it has no mark of its own
  check(!bytes.empty(), name, ": the image is empty (0 bytes)");
  fail(name, ": unknown image format, it ", describe(bytes),
       "; known are JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, HEIC, ICO, PPM and TGA");
}

/// a*alpha + b*(255 - alpha) over 255, rounded to nearest.
uint8_t blend(int a, int b, int alpha) {
  return static_cast<uint8_t>((a * alpha + b * (255 - alpha) + 127) / 255);
}

std::vector<uint8_t> without_alpha(const std::vector<uint8_t>& rgba, bool over_white) {
  std::vector<uint8_t> rgb(rgba.size() / 4 * 3);
  uint8_t* to = rgb.data();
  for (size_t i = 0; i < rgba.size(); i += 4)
    for (size_t c = 0; c < 3; ++c) *to++ = over_white ? blend(rgba[i + c], 255, rgba[i + 3]) : rgba[i + c];
  return rgb;
}

}  // namespace

Image decode_image(Bytes bytes, const std::string& name, const DecodeOptions& options) {
  const Format format = format_of(bytes, name);
  Pixels pixels = format.decode({bytes, name, format.name, options.max_pixels});
  if (options.apply_orientation) pixels = detail::upright(std::move(pixels));
  if (pixels.channels == 4) pixels.data = without_alpha(pixels.data, options.alpha_over_white);
  return {pixels.width, pixels.height, std::move(pixels.data)};
}

Image load_image(const std::filesystem::path& path, const DecodeOptions& options) {
  const bool standard_input = path == "-";
  const std::string name = standard_input ? "standard input" : path.string();
  std::ifstream file;
  if (!standard_input) {
    std::error_code ignored;
    check(!std::filesystem::is_directory(path, ignored), name, ": is a folder, not an image file");
    file.open(path, std::ios::binary);
    check(file.is_open(), name, ": ",
          std::filesystem::exists(path, ignored) ? "cannot be opened for reading" : "no such file");
  }
  std::istream& in = standard_input ? std::cin : file;
  std::vector<uint8_t> bytes;
  constexpr size_t step = 1 << 20;
  while (in) {
    const size_t before = bytes.size();
    bytes.resize(before + step);
    in.read(reinterpret_cast<char*>(bytes.data() + before), step);
    bytes.resize(before + in.gcount());
    check(std::cmp_less_equal(bytes.size(), options.max_file_bytes), name, ": is larger than ",
          options.max_file_bytes, " bytes, the most that is read as an image");
  }
  check(!in.bad(), name, ": reading failed");
  return decode_image(bytes, name, options);
}

}  // namespace glimpse
