#include "glimpse/engine/packed_copy.h"

#include <iomanip>
#include <iostream>
#include <sstream>

#include "glimpse/engine/checked_file.h"
#include "glimpse/engine/hash.h"

namespace glimpse {

namespace fs = std::filesystem;

namespace {

constexpr const char* kFormat = "glimpse packed weights 1";  // to be counted up when the layout changes

std::string in_gib(uint64_t bytes) {
  std::ostringstream out;
  out << std::setprecision(3) << static_cast<double>(bytes) / (uint64_t{1} << 30) << " GiB";
  return out.str();
}

}  // namespace

std::map<std::string, at::Tensor> tensors_of(const std::string& name, const LowBitWeight& weight) {
  std::map<std::string, at::Tensor> tensors;
  const std::string prefix = name + ".weight";
  for (const auto& [ending, tensor] : {std::pair{"", weight.data},
                                       {"_scale", weight.scale},
                                       {"_correction", weight.correction},
                                       {"_multiple", weight.multiple},
                                       {"_table", weight.table}})
    if (tensor.defined()) tensors.emplace(prefix + ending, tensor);
  return tensors;
}

PackedCopy::PackedCopy(std::shared_ptr<CacheFolder> folder, const std::string& origin, WeightOptions& how)
    : folder_(std::move(folder)) {
  if (!folder_ || how.format != WeightOptions::Format::stored || !how.keep) return;
  Hash hash(0);
  hash.add(std::string(kFormat));
  hash.add(origin);
  key_ = hash.text();
  file_ = folder_->dir() / concat("weights-", key_, ".safetensors");
  how.packed = read();
  if (how.packed) return;
  how.on_rounded = [this, before = how.on_rounded](const std::string& name, const LowBitWeight& weight) {
    made_.emplace(name, weight);
    if (before) before(name, weight);
  };
}

std::shared_ptr<const Weights> PackedCopy::read() const {
  std::error_code error;
  const uint64_t bytes = fs::file_size(file_, error);
  if (error || bytes > folder_->max_bytes()) return nullptr;
  folder_->hold(file_);
  auto packed = load_checked(file_, 0, key_, [&](std::map<std::string, at::Tensor> tensors) {
    return std::make_shared<const Weights>(Weights::from(std::move(tensors), file_.string()));
  });
  if (!packed) folder_->release(file_);
  return packed;
}

void PackedCopy::finish() {
  if (made_.empty()) return;
  std::map<std::string, at::Tensor> tensors;
  for (const auto& [name, weight] : made_) tensors.merge(tensors_of(name, weight));
  made_.clear();
  try {
    const uint64_t bytes = checked_bytes(tensors), most = folder_->max_bytes();
    check(bytes <= most, "it takes ", in_gib(bytes), ", more than the ", in_gib(most),
          " of the whole folder; raise cache_disk_gb");
    check(folder_->make_room(bytes), "it takes ", in_gib(bytes), ", for which ", in_gib(most),
          " leave no room beside what is in use there; raise cache_disk_gb");
    save_checked(file_, tensors, 0, key_);
    folder_->hold(file_);
  } catch (const std::exception& failure) {
    std::cerr << "glimpse: no copy of the packed weights was kept: " << failure.what() << "\n";
  }
}

}  // namespace glimpse
