#pragma once

#include "glimpse/prune/pruner.h"
#include "glimpse/prune/similarity.h"

namespace glimpse {

/// VisionZip (arXiv 2412.04467): the tokens that the encoder's last block attends to most, and a few evenly
/// spaced ones into which it merges the rest. Merges projected tokens and keeps every token in its place, as
/// the reference does on Qwen2.5-VL.
class VisionZip : public Pruner {
 public:
  struct Options {
    double dominant = 0.061, contextual = 0.05;
    Fields fields();
  };
  explicit VisionZip(Options options) : options_(options) {}
  std::string name() const override { return "visionzip"; }
  nlohmann::json settings() const override { return Options(options_).fields().to_json(); }
  std::vector<Cut> cuts() const override {
    return {{.place = Cut::Place::before, .renumbers = true, .reads_text = false}};
  }
  Taps taps() const override {
    Taps taps;
    taps.vision_attention.resize(1);
    return taps;
  }
  Selection select(const View& view, const Cut& cut, const Budget& budget) const override;

 private:
  Options options_;
};

/// Both lists ascend; `merged` assigns all other tokens to the contextual ones.
struct VisionZipChoice {
  std::vector<int64_t> dominant, contextual;
  Assignment merged;
};
/// Chooses among n tokens by attention received [n] and keys [n, d].
VisionZipChoice visionzip_choice(const at::Tensor& received, const at::Tensor& keys, int64_t dominant,
                                 int64_t contextual);
/// The contextual tokens of features [n, D], each with the mean of what it was assigned added: float32.
at::Tensor visionzip_merge(const at::Tensor& features, const VisionZipChoice& choice);

}  // namespace glimpse
