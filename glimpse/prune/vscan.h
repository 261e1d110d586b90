#pragma once

#include "glimpse/prune/pruner.h"
#include "glimpse/prune/similarity.h"

namespace glimpse {

/// VScan (arXiv 2505.22654). At the encoder's output: half of the tokens by a shallow block's attention,
/// spread over local windows, half by the last block's; each dropped token is merged into the most similar
/// kept one. Then, before listed layers of the language model, the tokens that the last prompt token would
/// attend to most. A budget sets what is left in the end.
class VScan : public Pruner {
 public:
  struct Options {
    double keep = 0.167;
    int64_t shallow = 0, window = 4;
    bool rotate_twice = true, whole_shares = false;
    std::vector<int64_t> layers;
    std::vector<double> layer_keep;
    bool layer_rope = false;
    Fields fields();
  };
  /// Error unless layers and fractions pair up.
  explicit VScan(Options options);
  std::string name() const override { return "vscan"; }
  nlohmann::json settings() const override { return Options(options_).fields().to_json(); }
  std::vector<Cut> cuts() const override;
  Taps taps() const override;
  Selection select(const View& view, const Cut& cut, const Budget& budget) const override;
  double operations(const Cut& cut, const CutSizes& sizes) const override;

 private:
  int64_t stage(const Cut& cut) const;
  Budget before_later_cuts(int64_t stage, int64_t total, const Budget& budget) const;
  Selection at_encoder(const View& view, const Budget& budget) const;
  Options options_;
};

/// Up to `count` of the tokens, taken by falling score but at most `share` from each window. `places` are the
/// tokens' indices in a grid of `rows` x `cols`, which windows of `side` x `side` divide; left-over rows and
/// columns belong to the last ones. Ascending.
std::vector<int64_t> vscan_local(const at::Tensor& scores, const at::Tensor& places, int64_t rows,
                                 int64_t cols, int64_t side, int64_t share, int64_t count);
/// Windows of a grid: at least one along either side.
int64_t vscan_windows(int64_t rows, int64_t cols, int64_t side);
/// The `count` highest scores outside `local`, ascending.
std::vector<int64_t> vscan_global(const at::Tensor& scores, const std::vector<int64_t>& local, int64_t count);
/// The kept ones of features [n, D] with every other one averaged into the most similar of them: float32.
at::Tensor vscan_merge(const at::Tensor& features, const std::vector<int64_t>& keep);

}  // namespace glimpse
