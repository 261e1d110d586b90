#pragma once

#include <ATen/ATen.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace glimpse {

/// The low-rank change of one Linear: weight += scale * b @ a.
struct LoraDelta {
  at::Tensor a;             ///< [r, in]
  at::Tensor b;             ///< [out, r]
  double scale = 0;         ///< alpha / r, or alpha / sqrt(r) for rank-stabilised adapters
  bool transposed = false;  ///< the weight is stored [in, out] (fan_in_fan_out)
  at::Tensor base = {};     ///< the weight that it is added to, where the adapter brings it: PEFT saves the
                            ///< output head beside its change

  /// Shape of the weight that this changes.
  std::vector<int64_t> weight_shape() const;

  /// `weight` ([out, in], or [in, out] when transposed) or `base`, with the change added in float32, in the
  /// weight's own dtype and on its device.
  at::Tensor apply(const at::Tensor& weight) const;
};

/// A PEFT LoRA adapter, by module and tensor names of the model that it was trained on.
struct Adapter {
  std::map<std::string, LoraDelta> deltas;         ///< by module, e.g. "model.layers.0.self_attn.q_proj"
  std::map<std::string, at::Tensor> replacements;  ///< whole tensors (modules_to_save, biases) by tensor name
};

/// Reads a PEFT directory: adapter_config.json and adapter_model.safetensors (or .bin). Error naming what is
/// not understood: another adapter type, DoRA and other variants that a sum of two matrices cannot express,
/// unknown or unpaired tensors, ranks other than the config's.
Adapter load_adapter(const std::filesystem::path& dir);

/// What adapter_config.json says beside the sizes of the matrices.
struct AdapterNotes {
  double dropout = 0;
  std::string base_model;  ///< name or path, "" when unknown
};

/// Writes a PEFT directory (made if missing) that PEFT and load_adapter read: `deltas` by module name, none
/// of them transposed. Each file appears only once it is complete, adapter_config.json last, so that a
/// directory with it is whole.
void save_adapter(const std::filesystem::path& dir, const std::map<std::string, LoraDelta>& deltas,
                  const AdapterNotes& notes = {});

}  // namespace glimpse
