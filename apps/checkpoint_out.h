#pragma once

#include <ATen/ATen.h>

#include <filesystem>
#include <functional>
#include <stop_token>
#include <string>
#include <vector>

#include "glimpse/models/source.h"

namespace glimpse::app {

/// A tensor to be written, made when its turn comes.
struct TensorOut {
  std::string name;  ///< in the file
  uint64_t bytes = 0;
  std::function<at::Tensor()> make;
};

/// Error unless `out` does not exist, or `overwrite` is given and `out` is an earlier output and holds none
/// of the `inputs`: replacing removes what is there.
void check_model_out(const std::filesystem::path& out, bool overwrite,
                     const std::vector<std::filesystem::path>& inputs);

/// Writes a checkpoint to the directory `out`, which appears only when it is complete: `tensors` in
/// safetensors files of at most `max_shard_size` bytes (with an index if there are several), and beside them
/// what `model` has beside its weights; then `finish` may change the temporary directory. Returns the number
/// of files, 0 if `stop` was requested.
size_t write_model(const std::filesystem::path& out, bool overwrite, const ModelSource& model,
                   const std::vector<TensorOut>& tensors, uint64_t max_shard_size,
                   const std::stop_token& stop,
                   const std::function<void(const std::filesystem::path&)>& finish = {});

}  // namespace glimpse::app
