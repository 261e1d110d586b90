#include "media.h"

#include <algorithm>
#include <iomanip>

#include "glimpse/engine/kept_pictures.h"
#include "glimpse/engine/row_media.h"

namespace glimpse::app {

void add_media_flags(CLI::App& app, std::vector<MediumFile>& files, const std::string& about_images,
                     const std::string& about_videos) {
  const auto add = [&](const std::string& names, bool video, const std::string& about, const char* type) {
    return app
        .add_option_function<std::vector<std::string>>(
            names,
            [&files, video](const std::vector<std::string>& paths) {
              for (const std::string& path : paths) files.push_back({video, path});
            },
            about)
        ->trigger_on_parse()  // so that files come in the order of the command line
        ->type_name(type)
        ->allow_extra_args(false);
  };
  add("-i,--image", false, about_images, "FILE")->group("Images");
  add("--video", true, about_videos, "FILE|DIR")->group("Video");
}

bool has_video(const std::vector<MediumFile>& files) {
  return std::ranges::any_of(files, &MediumFile::video);
}

Medium open_medium(const MediumFile& file, const CommonFlags& flags) {
  Medium medium = load_medium(file.path, file.video, flags.bounds, flags.video);
  // What cannot be chosen of a video is better known before a model is loaded.
  if (const auto* const video = std::get_if<Video>(&medium)) shown_frames(*video);
  return medium;
}

KeptCount count_kept(const Answer& answer, size_t medium) {
  KeptCount count;
  for (size_t i = 0; i < answer.segments.size(); ++i)
    if (answer.segments[i].medium == static_cast<int64_t>(medium)) {
      count.all += answer.segments[i].count();
      count.kept += std::ssize(answer.keep[i]);
    }
  return count;
}

std::string shown_of(const Video& video) {
  const ShownFrames shown = shown_frames(video);
  const VideoInfo& info = video.source->info();
  std::ostringstream out;
  out << "video of " << shown.indices.size() << " frames at " << std::setprecision(3) << shown.fps
      << " per second, " << info.width << " x " << info.height;
  return out.str();
}

std::string video_lines(const Answer& answer, const std::vector<Medium>& media) {
  std::string lines;
  for (size_t i = 0; i < media.size(); ++i)
    if (const auto* const video = std::get_if<Video>(&media[i])) {
      const KeptCount count = count_kept(answer, i);
      lines += concat(shown_of(*video), ": ", count.all, " visual tokens, kept ", count.kept, "\n");
    }
  return lines;
}

}  // namespace glimpse::app
