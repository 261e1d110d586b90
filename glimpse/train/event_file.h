#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>

#include "glimpse/image/image.h"

namespace glimpse {

/// The curves and pictures of a run as TensorBoard reads them: a new
/// `folder`/events.out.tfevents.<time>.<host>. Tags are UTF-8, grouped by what stands before their '/'. Steps
/// count from 0.
class EventFile {
 public:
  /// Takes back what earlier files of the folder say of `first_step` and later ones: a run that goes on, or
  /// starts again. The folder is made if need be. Error when it cannot be written to.
  explicit EventFile(const std::filesystem::path& folder, int64_t first_step = 0);

  /// TensorBoard keeps float32.
  void scalar(const std::string& tag, double value, int64_t step);
  void image(const std::string& tag, const Image& image, int64_t step);
  /// Error when the bytes are no PNG.
  void image(const std::string& tag, std::span<const uint8_t> png, int64_t step);
  /// Markdown.
  void text(const std::string& tag, const std::string& text, int64_t step);

  /// Error when something could not be written.
  void flush();
  const std::filesystem::path& path() const { return path_; }

 private:
  // The encoded fields of an event beside its time and step; of a summary's value beside its tag.
  void write(int64_t step, const std::string& fields);
  void write_value(const std::string& tag, int64_t step, const std::string& fields);

  std::filesystem::path path_;
  std::ofstream out_;
};

}  // namespace glimpse
