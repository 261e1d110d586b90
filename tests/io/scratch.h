#pragma once

#include <ATen/ATen.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>

#include "glimpse/base/check.h"

#undef CHECK
#include <doctest/doctest.h>

namespace glimpse::test {

inline const std::filesystem::path kSource = GLIMPSE_SOURCE_DIR;
inline const std::filesystem::path kData = kSource / "tests/io/data";

/// An empty folder that is removed at the end.
class Scratch {
 public:
  Scratch() {
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  ~Scratch() { std::filesystem::remove_all(path_); }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  std::filesystem::path write(const std::string& name, const std::string& bytes) const {
    std::filesystem::create_directories((path_ / name).parent_path());
    std::ofstream(path_ / name, std::ios::binary) << bytes;
    return path_ / name;
  }

 private:
  std::filesystem::path path_ =
      std::filesystem::temp_directory_path() / ("glimpse_io_" + std::to_string(::getpid()));
};

inline std::string contents(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

/// The text of the glimpse::Error that `action` throws, "" when it throws none.
template <class Action>
std::string error_of(const Action& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

inline double sum_of_magnitudes(const std::map<std::string, at::Tensor>& tensors) {
  double sum = 0;
  for (const auto& [name, tensor] : tensors) sum += tensor.to(at::kDouble).abs().sum().item<double>();
  return sum;
}

/// `text` holds `part`; shows both when it does not.
inline void check_mentions(const std::string& text, const std::string& part) {
  CHECK_MESSAGE(text.find(part) != std::string::npos, concat("'", text, "' does not mention '", part, "'"));
}

}  // namespace glimpse::test
