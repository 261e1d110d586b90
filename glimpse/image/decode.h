#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

#include "glimpse/image/image.h"

namespace glimpse {

struct DecodeOptions {
  int64_t max_pixels = 178'956'970;  ///< larger pictures are refused before memory is taken (Pillow's limit)
  int64_t max_file_bytes = int64_t{1} << 29;  ///< load_image refuses larger files (512 MiB)
  bool apply_orientation = true;              ///< turn and mirror as the EXIF orientation says
  bool alpha_over_white = true;               ///< false: drop alpha, as the plain Hugging Face processor does
};

/// Decodes JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, HEIC, ICO, TGA or PPM (and PBM, PGM), told apart by their
/// first bytes; of several frames or pages the first, of an icon's pictures the largest. Pixels equal
/// Pillow's `convert("RGB")` except that transparency goes over white, that 16-bit grey keeps its high byte,
/// where Pillow clips at 255, and for rounding in AVIF and HEIC. Throws Error, starting with `name`, for
/// empty, unknown, damaged or truncated data and for more than `max_pixels` pixels; what is wrong with a file
/// only before or behind its pixels is let pass.
Image decode_image(std::span<const uint8_t> bytes, const std::string& name,
                   const DecodeOptions& options = {});

/// Reads and decodes a file; "-" reads standard input. Throws Error naming the file.
Image load_image(const std::filesystem::path& path, const DecodeOptions& options = {});

}  // namespace glimpse
