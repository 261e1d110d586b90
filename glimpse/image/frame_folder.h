#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "glimpse/image/video.h"

namespace glimpse::detail {

/// A folder of pictures as a video; see open_video.
std::shared_ptr<const VideoSource> open_frame_folder(const std::filesystem::path& path);

/// So many pictures as a video's frames that were chosen already, decoded one at a time by `load`, the first
/// of them at once. `frame_name`: for messages.
std::shared_ptr<const VideoSource> video_of_pictures(const std::string& name, int64_t count,
                                                     std::function<std::string(int64_t)> frame_name,
                                                     std::function<Image(int64_t)> load);

/// Whether a name stands before another: runs of digits by the number that they are, the rest by its bytes.
bool name_before(std::string_view a, std::string_view b);

/// Throws unless `indices` ascend and lie in the video.
void check_indices(const VideoSource& video, std::span<const int64_t> indices);

}  // namespace glimpse::detail
