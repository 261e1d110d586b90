#include "glimpse/models/video_settings.h"

#include <algorithm>

#include "glimpse/image/qwen_image.h"
#include "glimpse/models/config.h"

namespace glimpse {

using nlohmann::json;

VideoOptions video_defaults(const ModelSource& source) {
  constexpr const char* file = "video_preprocessor_config.json";
  const json settings = source.settings(file);
  if (settings.is_null()) return {};
  return named(source.where(file), [&] {
    check(settings.is_object(), "expected a JSON object");
    VideoOptions out;
    const Fields fields = out.fields();
    for (const Field& field : fields.list())
      if (field.name == "fps" || field.name == "min_frames" || field.name == "max_frames")
        field.set(member(settings, field.name.c_str()));
    if (member(settings, "video_processor_type") != "Qwen2VLVideoProcessor") return out;
    QwenImageOptions frame;
    frame.min_pixels = 1;
    frame.max_pixels = int64_t{1} << 30;
    frame = QwenImageOptions::from_json(settings, frame);
    const int64_t side = int64_t{frame.patch_size} * frame.merge_size, usual = 128 * side * side;
    out.min_pixels = usual <= frame.max_pixels ? std::max(usual, frame.min_pixels) : frame.min_pixels;
    out.max_pixels = frame.max_pixels;
    return out;
  });
}

VideoOptions video_options(const VideoOptions& asked, const ImageBounds& bounds, const ModelSource& source) {
  VideoOptions frame;
  frame.min_pixels = bounds.min_pixels;
  frame.max_pixels = bounds.max_pixels;
  return asked.or_else(frame).or_else(video_defaults(source));
}

}  // namespace glimpse
