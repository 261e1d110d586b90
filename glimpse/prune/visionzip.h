#pragma once

#include "glimpse/prune/pruner.h"
#include "glimpse/prune/similarity.h"

namespace glimpse {

/// VisionZip (arXiv 2412.04467): the tokens that the encoder's last block attends to most, and a few evenly
/// spaced ones into which it merges the rest. Where the encoder has a class token that is one of the dominant
/// ones; it works on the encoder's output then, and gives class token, dominant and contextual tokens in this
/// order. Else it works on projected tokens, and every token keeps its place.
class VisionZip : public Pruner {
 public:
  struct Options {
    double dominant = 0.061, contextual = 0.05;  ///< parts of an image's tokens, or from 1 on their number
    bool class_token = false;                    ///< the encoder has one
    Fields fields();
    /// What the method's own rule takes of an image of `count` tokens: contextual ones, and all.
    int64_t merged(int64_t count) const;
    int64_t kept(int64_t count) const;
    /// How large a part of what is kept of it is contextual.
    double merging_part(int64_t count) const;
  };
  /// Error for numbers that are none, and for no contextual token beside a class token.
  explicit VisionZip(Options options);
  std::string name() const override { return "visionzip"; }
  nlohmann::json settings() const override { return Options(options_).fields().to_json(); }
  std::vector<Cut> cuts() const override {
    const auto place = options_.class_token ? Cut::Place::encoder : Cut::Place::before;
    return {{.place = place, .renumbers = true, .reads_text = false}};
  }
  Taps taps() const override {
    Taps taps;
    taps.vision_attention.resize(1);
    return taps;
  }
  Selection select(const View& view, const Cut& cut, const Budget& budget) const override;
  double operations(const Cut& cut, const CutSizes& sizes) const override;

 private:
  Options options_;
};

/// Both lists ascend; `merged` assigns all other tokens to the contextual ones.
struct VisionZipChoice {
  std::vector<int64_t> dominant, contextual;
  Assignment merged;
};
/// Chooses among n tokens by attention received [n] and keys [n, d]. Error if fewer than `contextual` are
/// left beside the dominant ones.
VisionZipChoice visionzip_choice(const at::Tensor& received, const at::Tensor& keys, int64_t dominant,
                                 int64_t contextual);
/// The contextual tokens of features [n, D], each with the mean of what it was assigned added: float32.
at::Tensor visionzip_merge(const at::Tensor& features, const VisionZipChoice& choice);

}  // namespace glimpse
