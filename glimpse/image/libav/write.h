#pragma once

#include "glimpse/image/video_module.h"

namespace glimpse::libav {

/// See VideoModule::write.
void write_video(const detail::VideoOutput& output, const std::function<std::optional<Image>()>& next);

}  // namespace glimpse::libav
