#include "glimpse/train/mask_score.h"

#include <algorithm>

#include "glimpse/base/check.h"

namespace glimpse {
namespace {

double share(int64_t part, int64_t whole) {
  return static_cast<double>(part) / static_cast<double>(whole);
}

}  // namespace

void MaskScore::add(std::span<const uint8_t> kept, std::span<const uint8_t> reference) {
  check(!kept.empty() && kept.size() == reference.size(), "masks of ", kept.size(), " and ", reference.size(),
        " tokens cannot be compared");
  const auto marked = [](uint8_t token) { return token != 0; };
  const int64_t chosen = std::ranges::count_if(kept, marked);
  for (size_t i = 0; i < kept.size(); ++i) both_ += kept[i] && reference[i];
  kept_ += chosen;
  reference_ += std::ranges::count_if(reference, marked);
  kept_shares_ += share(chosen, std::ssize(kept));
  ++samples_;
}

void MaskScore::add(const MaskScore& other) {
  samples_ += other.samples_;
  both_ += other.both_;
  kept_ += other.kept_;
  reference_ += other.reference_;
  kept_shares_ += other.kept_shares_;
}

double MaskScore::precision() const {
  return share(both_, kept_);
}
double MaskScore::recall() const {
  return share(both_, reference_);
}
double MaskScore::f1() const {
  return share(2 * both_, kept_ + reference_);
}
double MaskScore::iou() const {
  return share(both_, kept_ + reference_ - both_);
}
double MaskScore::kept() const {
  return kept_shares_ / static_cast<double>(samples_);
}

}  // namespace glimpse
