#pragma once

#include "glimpse/image/image.h"
#include "glimpse/image/libav/libav.h"

namespace glimpse::libav {

/// The EXIF orientation (1 to 8) that a stream's display matrix amounts to.
int orientation_of(AVStream& stream);

/// Makes pictures of decoded frames: RGB by the colour space and range that the frame says (BT.601 and
/// limited if it does not), at one size, turned upright.
class ToImage {
 public:
  /// `width` and `height` before turning; frames of another size, which a stream may change to, are scaled.
  ToImage(int width, int height, int orientation);
  /// Error, which begins with `name`, for pixels that cannot be converted.
  Image convert(const AVFrame& frame, const std::string& name);

 private:
  int orientation_;
  Frame rgb_;  // rows padded as the scaler likes them
  Scaler scaler_;
};

}  // namespace glimpse::libav
