#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "glimpse/engine/sequence.h"

namespace glimpse {

/// What a prompt's beginning, up to and including its last visual token, leaves in the language model before
/// the first cut that may depend on what follows. Where that lies within the encoder it is a prefix of no
/// rows, the encoder's part alone. Never changed once made.
struct ImagePrefix {
  int64_t tokens = 0;                         ///< prompt rows it stands for
  VisionOutput vision;                        ///< what later cuts read of the encoder
  std::vector<LayerCache> layers;             ///< of the layers run, each as long as `rows`
  at::Tensor hidden;                          ///< [rows, D]: their output, or undefined if it is the last
  std::vector<int64_t> rows, visual, source;  ///< as LivingRows has them
  at::Tensor position_ids;                    ///< [components, rows]
  std::vector<int64_t> shift;                 ///< as Sequence has it
  std::vector<int64_t> left;                  ///< as Sequence has it
  at::Tensor scores;                          ///< as Sequence has them
  std::shared_ptr<const Encoding> encoding;   ///< on its way, before that cut; not in tensors_of()

  /// Bytes of all tensors.
  size_t bytes() const;
};

/// All of a prefix, by names: tensors [...] on the CPU, lists of numbers as int64.
std::map<std::string, at::Tensor> tensors_of(const ImagePrefix& prefix);
/// The prefix whose tensors these are, in memory of its own on the device. Errors: a name is missing.
ImagePrefix prefix_of(const std::map<std::string, at::Tensor>& tensors, at::Device device);

}  // namespace glimpse
