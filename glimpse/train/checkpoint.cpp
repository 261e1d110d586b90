#include "glimpse/train/checkpoint.h"

#include <algorithm>
#include <charconv>
#include <vector>

#include "glimpse/base/check.h"
#include "glimpse/io/safetensors.h"

namespace glimpse {

namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "step-", kSuffix = ".safetensors";

// Step and file of every checkpoint, oldest first. Files that are not complete have another suffix.
std::vector<std::pair<int64_t, fs::path>> checkpoints(const fs::path& dir) {
  std::vector<std::pair<int64_t, fs::path>> found;
  if (!fs::is_directory(dir)) return found;
  for (const auto& entry : fs::directory_iterator(dir)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(kPrefix) || !name.ends_with(kSuffix)) continue;
    int64_t step = -1;
    const char *first = name.data() + kPrefix.size(), *last = name.data() + name.size() - kSuffix.size();
    if (const auto [end, error] = std::from_chars(first, last, step); error == std::errc() && end == last)
      found.emplace_back(step, entry.path());
  }
  std::sort(found.begin(), found.end());
  return found;
}

}  // namespace

void save_checkpoint(const fs::path& run, const Checkpoint& checkpoint, size_t keep) {
  const fs::path dir = run / "checkpoints";
  fs::create_directories(dir);
  save_safetensors(dir / concat(kPrefix, checkpoint.step, kSuffix), checkpoint.state,
                   {{"step", std::to_string(checkpoint.step)}});
  auto all = checkpoints(dir);
  for (size_t i = 0; i + std::max<size_t>(keep, 1) < all.size(); ++i) fs::remove(all[i].second);
}

std::optional<Checkpoint> newest_checkpoint(const fs::path& run) {
  const auto all = checkpoints(run / "checkpoints");
  if (all.empty()) return std::nullopt;
  return Checkpoint{all.back().first, load_safetensors(all.back().second).tensors};
}

}  // namespace glimpse
