#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "glimpse/engine/cache_folder.h"
#include "glimpse/nn/linear.h"

namespace glimpse {

/// A file of a cache folder with the layers that a load kept in few bits, as the kernels read them, so that
/// the next load of the same model maps them.
class PackedCopy {
 public:
  /// `folder`: null for none. `origin`: everything that the layers depend on. Makes `how` take them from the
  /// file, or, where there is none of this origin that is whole, collects what is made in this object, which
  /// must outlive the load. A copy that is read or written is held by the folder.
  PackedCopy(std::shared_ptr<CacheFolder> folder, const std::string& origin, WeightOptions& how);
  PackedCopy(const PackedCopy&) = delete;

  /// After the load: writes the file. A failure is told on standard error, and so is that the folder's bound
  /// leaves no room for it; then there is no copy.
  void finish();

 private:
  std::shared_ptr<const Weights> read() const;

  std::shared_ptr<CacheFolder> folder_;
  std::filesystem::path file_;
  std::string key_;
  std::map<std::string, LowBitWeight> made_;
};

/// The tensors that a quantised checkpoint has for the weight of the layer called `name`.
std::map<std::string, at::Tensor> tensors_of(const std::string& name, const LowBitWeight& weight);

}  // namespace glimpse
