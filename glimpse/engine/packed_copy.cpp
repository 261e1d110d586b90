#include "glimpse/engine/packed_copy.h"

#include <iostream>

#include "glimpse/engine/checked_file.h"
#include "glimpse/engine/hash.h"

namespace glimpse {

namespace fs = std::filesystem;

namespace {

constexpr const char* kFormat = "glimpse packed weights 1";  // to be counted up when the layout changes

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
  key_ = hash.text();
  file_ = dir / concat("weights-", key_, ".safetensors");
  how.packed = read();
  if (how.packed) return;
  how.on_rounded = [this, before = how.on_rounded](const std::string& name, const LowBitWeight& weight) {
    made_.emplace(name, weight);
    if (before) before(name, weight);
  };
}

std::shared_ptr<const Weights> PackedCopy::read() const {
  return load_checked(file_, 0, key_, [&](std::map<std::string, at::Tensor> tensors) {
    return std::make_shared<const Weights>(Weights::from(std::move(tensors), file_.string()));
  });
}

void PackedCopy::finish() {
  if (made_.empty()) return;
  std::map<std::string, at::Tensor> tensors;
  for (const auto& [name, weight] : made_) tensors.merge(tensors_of(name, weight));
  made_.clear();
  try {
    make_private_folder(file_.parent_path());  // as for the pictures that may be kept beside it
    save_checked(file_, tensors, 0, key_);
  } catch (const std::exception& failure) {
    std::cerr << "glimpse: no copy of the packed weights was kept: " << failure.what() << "\n";
  }
}

}  // namespace glimpse
