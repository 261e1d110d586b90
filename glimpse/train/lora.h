#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "glimpse/base/options.h"
#include "glimpse/nn/decoder.h"

namespace glimpse {

/// LoRA of a decoder's linear layers (method.md section 6).
struct LoraOptions {
  int64_t r = 32;
  double alpha = 64;
  double dropout = 0.05;
  std::vector<std::string> targets = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                      "gate_proj", "up_proj", "down_proj"};
  int64_t first_layer = 0;  ///< layers before it get no branch
  Fields fields();
};

/// Trainable low-rank branches beside a Decoder's linear layers. They belong to this object; attach() makes a
/// decoder use them and detach() makes it the base model again, both at no cost.
class LoraAdapter {
 public:
  /// Branches as PEFT starts them: A uniform in +-1/sqrt(in), B zero; float32 on the decoder's device. Error
  /// when a target is no layer's name ("q_proj", "mlp.up_proj", ...) or there is no such first layer.
  static LoraAdapter fresh(Decoder& decoder, const LoraOptions& options, uint64_t seed);
  /// Reads a PEFT directory to train it further. `rename` brings its module names to the decoder's. Error
  /// when it holds more than branches of this decoder's linear layers.
  static LoraAdapter load(Decoder& decoder, const std::filesystem::path& dir, double dropout,
                          const Weights::Rename& rename = {});

  /// Makes `decoder`, of the shape that this was made for, use the branches.
  void attach(Decoder& decoder) const;
  static void detach(Decoder& decoder);

  /// The leaves to train: "<module>.lora_A.weight" [r, in] and "<module>.lora_B.weight" [out, r], float32.
  std::map<std::string, at::Tensor> parameters() const;

  /// So many layers of `decoder`, from the first on, have no branch: they are the base model's.
  int64_t untouched_layers(const Decoder& decoder) const;

  /// Its probability in training.
  double dropout() const { return dropout_; }

  /// Writes a PEFT directory (see save_adapter); `base_model` is noted in it.
  void save(const std::filesystem::path& dir, const std::string& base_model = {}) const;

 private:
  void add(const std::string& module, const at::Tensor& a, const at::Tensor& b, double scale);

  std::map<std::string, std::shared_ptr<Lora>> branches_;
  double dropout_ = 0;
};

}  // namespace glimpse
