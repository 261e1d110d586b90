#pragma once

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include <ATen/ATen.h>

namespace glimpse {

/// Where a run stands after `step` steps of the optimiser. The order of the rows and the random numbers of a
/// step follow from the seed and the step, so this is all that resuming needs.
struct Checkpoint {
  int64_t step = 0;
  std::map<std::string, at::Tensor> state;  ///< Optimiser::state()
};

/// Writes RUN/checkpoints/step-N.safetensors, which appears only when it is complete, and removes all but the
/// newest `keep`.
void save_checkpoint(const std::filesystem::path& run, const Checkpoint& checkpoint, size_t keep);

/// The newest checkpoint of a run, if there is one.
std::optional<Checkpoint> newest_checkpoint(const std::filesystem::path& run);

}  // namespace glimpse
