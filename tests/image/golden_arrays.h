#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

namespace glimpse::test {

inline const std::filesystem::path data_root = std::filesystem::path(GLIMPSE_SOURCE_DIR) / "tests" / "data";
inline const std::filesystem::path golden_root =
    std::getenv("GLIMPSE_GOLDEN_DIR") ? std::filesystem::path(std::getenv("GLIMPSE_GOLDEN_DIR"))
                                      : data_root / "golden";
/// Whether these are the project's own, whose cases are known.
inline const bool own_golden_data = std::getenv("GLIMPSE_GOLDEN_DIR") == nullptr;

inline std::vector<uint8_t> read_bytes(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error("cannot read " + path.string());
  return {std::istreambuf_iterator<char>(in), {}};
}

inline nlohmann::json read_json(const std::filesystem::path& path) {
  return nlohmann::json::parse(std::ifstream(path));
}

/// The arrays of a safetensors file, for trusted test data only.
class GoldenArrays {
 public:
  explicit GoldenArrays(const std::filesystem::path& path) : bytes_(read_bytes(path)) {
    uint64_t size = 0;
    std::memcpy(&size, bytes_.data(), sizeof size);
    header_ = nlohmann::json::parse(bytes_.begin() + sizeof size, bytes_.begin() + sizeof size + size);
    data_ = sizeof size + size;
  }

  template <class T>
  std::vector<T> values(const std::string& name) const {
    const auto& offsets = header_.at(name).at("data_offsets");
    const size_t begin = offsets.at(0), end = offsets.at(1);
    std::vector<T> out((end - begin) / sizeof(T));
    std::memcpy(out.data(), bytes_.data() + data_ + begin, end - begin);
    return out;
  }

  std::vector<int64_t> shape(const std::string& name) const { return header_.at(name).at("shape"); }

 private:
  std::vector<uint8_t> bytes_;
  nlohmann::json header_;
  size_t data_ = 0;
};

}  // namespace glimpse::test
