#pragma once

#include <CLI/CLI.hpp>

#include <string>
#include <vector>

#include "flags.h"
#include "glimpse/engine/engine.h"
#include "glimpse/image/medium.h"

namespace glimpse::app {

/// A picture or a video that the user named.
struct MediumFile {
  bool video = false;
  std::string path;

  const char* flag() const { return video ? "--video" : "--image"; }
  auto operator<=>(const MediumFile&) const = default;
};

/// Adds --image and --video, both repeatable, which add to `files` in the order of the command line.
void add_media_flags(CLI::App& app, std::vector<MediumFile>& files, const std::string& about_images,
                     const std::string& about_videos);
bool has_video(const std::vector<MediumFile>& files);

/// Reads a picture, or opens a video and looks which of its frames the flags choose. Errors name the file.
Medium open_medium(const MediumFile& file, const CommonFlags& flags);

/// How much of a medium an answer keeps.
struct KeptCount {
  int64_t kept = 0, all = 0;
};
KeptCount count_kept(const Answer& answer, size_t medium);

/// What is shown of a video, for people: "video of 32 frames at 2 per second, 512 x 288".
std::string shown_of(const Video& video);
/// A line for each video: that, and how many of its tokens were kept.
std::string video_lines(const Answer& answer, const std::vector<Medium>& media);

}  // namespace glimpse::app
