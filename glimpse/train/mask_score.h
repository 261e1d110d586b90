#pragma once

#include <cstdint>
#include <span>

namespace glimpse {

/// How well kept tokens agree with the reference masks from boxes (docs/method.md section 7): precision,
/// recall, F1 and IoU over the tokens of all samples together, the kept share as a mean over samples.
class MaskScore {
 public:
  /// One sample: 0 or not 0 for each of its visual tokens. Error unless both have the same number, at
  /// least 1.
  void add(std::span<const uint8_t> kept, std::span<const uint8_t> reference);
  /// All samples of another score.
  void add(const MaskScore& other);

  int64_t samples() const { return samples_; }
  // Each in [0, 1]; not a number where it is a part of nothing.
  double precision() const;  ///< of the kept tokens, those in the reference
  double recall() const;     ///< of the reference's tokens, those kept
  double f1() const;
  double iou() const;
  double kept() const;

 private:
  int64_t samples_ = 0, both_ = 0, kept_ = 0, reference_ = 0;
  double kept_shares_ = 0;
};

}  // namespace glimpse
