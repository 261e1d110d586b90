#pragma once

#include <variant>

#include "glimpse/image/image.h"
#include "glimpse/image/video.h"

namespace glimpse {

/// What a message shows beside its texts.
using Medium = std::variant<Image, Video>;

inline bool is_video(const Medium& medium) {
  return std::holds_alternative<Video>(medium);
}

}  // namespace glimpse
