#include "glimpse/image/video_module.h"

#include <ATen/Parallel.h>
#include <dlfcn.h>

#include <algorithm>
#include <filesystem>

#include "glimpse/base/check.h"

namespace glimpse::detail {
namespace {

constexpr const char* file_name = "libglimpse_video.so";

#ifdef GLIMPSE_VIDEO
const VideoModule& load() {
  // Beside libglimpse: in the build tree, an install and the Python package alike.
  Dl_info here{};
  check(dladdr(reinterpret_cast<const void*>(&video_module), &here) && here.dli_fname,
        "video: the folder of libglimpse is not known");
  const std::filesystem::path path = std::filesystem::path(here.dli_fname).parent_path() / file_name;
  std::error_code ignored;
  check(std::filesystem::exists(path, ignored), "video: ", path.string(),
        " is missing; it is installed together with libglimpse");
  void* const library = dlopen(path.c_str(), RTLD_LAZY | RTLD_LOCAL);
  if (!library) {
    const char* const why = dlerror();
    fail("video: ", file_name, " cannot be loaded: ", why ? why : "no reason was given",
         " (it needs FFmpeg's libraries; on Debian: libavformat59, libavcodec59, libswscale6 or what it was "
         "built with)");
  }
  const auto entry = reinterpret_cast<decltype(&glimpse_video_1)>(dlsym(library, "glimpse_video_1"));
  check(entry != nullptr, "video: ", path.string(), " is of another version of glimpse");
  return *entry();
}
#else
const VideoModule& load() {
  fail(
      "this build of glimpse reads no video files (configure with GLIMPSE_VIDEO=ON); a folder of the video's"
      " frames as pictures can be read");
}
#endif

}  // namespace

const VideoModule& video_module() {
  static const VideoModule& module = load();
  return module;
}

int video_threads() {
  constexpr int most = 16;  // each has frames of its own in memory
  return std::clamp(at::get_num_threads(), 1, most);
}

}  // namespace glimpse::detail
