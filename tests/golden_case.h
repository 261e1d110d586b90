#pragma once

#include <ATen/ATen.h>

#include <cstdlib>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "glimpse/base/json_file.h"
#include "glimpse/io/safetensors.h"

namespace glimpse::test {

/// Golden data: GLIMPSE_GOLDEN_DIR, else the copy in the source tree.
inline std::filesystem::path golden_dir() {
  const char* set = std::getenv("GLIMPSE_GOLDEN_DIR");
  return set ? std::filesystem::path(set) : std::filesystem::path(GLIMPSE_SOURCE_DIR) / "tests/data/golden";
}

/// Whether that is the copy in the source tree, whose cases are known.
inline bool own_golden_data() {
  std::error_code none;
  return std::filesystem::equivalent(golden_dir(),
                                     std::filesystem::path(GLIMPSE_SOURCE_DIR) / "tests/data/golden", none);
}

/// One case: what it is (json) and its arrays.
struct GoldenCase {
  std::filesystem::path folder;  ///< of the model family (the parent of cases/)
  std::string name;
  nlohmann::json info;
  std::map<std::string, at::Tensor> arrays;

  explicit GoldenCase(const std::filesystem::path& json_file)
      : folder(json_file.parent_path().parent_path()), name(json_file.stem()), info(read_json(json_file)) {
    std::filesystem::path file = json_file;
    arrays = load_safetensors(file.replace_extension(".safetensors")).tensors;
  }
  bool has(const std::string& key) const { return arrays.contains(key); }
  const at::Tensor& operator[](const std::string& key) const { return arrays.at(key); }
  std::vector<int64_t> integers(const std::string& key) const {
    const at::Tensor wide = arrays.at(key).to(at::kLong).contiguous();
    return {wide.const_data_ptr<int64_t>(), wide.const_data_ptr<int64_t>() + wide.numel()};
  }
};

/// The cases of a folder (what has arrays), sorted by name; none if there is no such folder.
inline std::vector<GoldenCase> golden_cases(const std::filesystem::path& folder) {
  std::set<std::filesystem::path> files;
  if (!std::filesystem::exists(folder)) return {};
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    if (entry.path().extension() == ".json" &&
        std::filesystem::exists(std::filesystem::path(entry.path()).replace_extension(".safetensors")))
      files.insert(entry.path());
  std::vector<GoldenCase> cases;
  for (const auto& file : files) cases.emplace_back(file);
  return cases;
}

/// The cases of `root`/*/`folder`, sorted by path.
inline std::vector<GoldenCase> cases_below(const std::filesystem::path& root,
                                           const std::filesystem::path& folder) {
  std::vector<GoldenCase> cases;
  std::set<std::filesystem::path> folders;
  if (std::filesystem::exists(root))
    for (const auto& entry : std::filesystem::directory_iterator(root)) folders.insert(entry.path() / folder);
  for (const auto& each : folders)
    for (GoldenCase& golden : golden_cases(each)) cases.push_back(std::move(golden));
  return cases;
}

/// Largest absolute difference; infinite when the shapes differ.
inline double difference(const at::Tensor& a, const at::Tensor& b) {
  if (a.sizes() != b.sizes()) return std::numeric_limits<double>::infinity();
  if (a.numel() == 0) return 0;
  return (a.to(at::kCPU, at::kDouble) - b.to(at::kCPU, at::kDouble)).abs().max().item<double>();
}

}  // namespace glimpse::test
