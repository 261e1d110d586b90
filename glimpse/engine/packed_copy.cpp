#include "glimpse/engine/packed_copy.h"

#include <sys/stat.h>

#include <iostream>

#include "glimpse/engine/hash.h"
#include "glimpse/io/safetensors.h"

namespace glimpse {

namespace fs = std::filesystem;

namespace {

constexpr const char* kFormat = "glimpse packed weights 1";  // to be counted up when the layout changes

std::string checksum(const std::string& key, const std::map<std::string, at::Tensor>& tensors) {
  Hash hash(0);
  hash.add(key);
  for (const auto& [name, tensor] : tensors) {
    hash.add(name);
    hash.add(tensor);
  }
  const XXH128_hash_t sum = hash.sum();
  return hex(sum.high64, sum.low64);
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

PackedCopy::PackedCopy(fs::path dir, const std::string& origin, WeightOptions& how) {
  if (dir.empty() || how.format != WeightOptions::Format::stored || !how.keep) return;
  Hash hash(0);
  hash.add(std::string(kFormat));
  hash.add(origin);
  const XXH128_hash_t sum = hash.sum();
  key_ = hex(sum.high64, sum.low64);
  file_ = dir / concat("weights-", key_, ".safetensors");
  how.packed = read();
  if (how.packed) return;
  how.on_rounded = [this, before = how.on_rounded](const std::string& name, const LowBitWeight& weight) {
    made_.emplace(name, weight);
    if (before) before(name, weight);
  };
}

// Every byte is looked at: the load is about to use most of them.
std::shared_ptr<const Weights> PackedCopy::read() const {
  std::error_code error;
  if (!fs::exists(file_, error)) return nullptr;
  try {
    Safetensors file = load_safetensors(file_);
    const auto sum = file.metadata.find("checksum");
    check(sum != file.metadata.end() && sum->second == checksum(key_, file.tensors), "damaged");
    return std::make_shared<const Weights>(Weights::from(std::move(file.tensors), file_.string()));
  } catch (const std::exception&) {  // damaged, or somebody else's
    fs::remove(file_, error);
    return nullptr;
  }
}

void PackedCopy::finish() {
  if (made_.empty()) return;
  std::map<std::string, at::Tensor> tensors;
  for (const auto& [name, weight] : made_) tensors.merge(tensors_of(name, weight));
  made_.clear();
  try {
    const fs::path dir = file_.parent_path();
    std::error_code error;
    if (dir.has_parent_path()) fs::create_directories(dir.parent_path(), error);
    mkdir(dir.c_str(), 0700);  // as for the pictures that may be kept beside it
    save_safetensors(file_, tensors, {{"checksum", checksum(key_, tensors)}});
  } catch (const std::exception& failure) {
    std::cerr << "glimpse: no copy of the packed weights was kept: " << failure.what() << "\n";
  }
}

}  // namespace glimpse
