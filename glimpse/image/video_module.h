#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <ostream>
#include <span>
#include <string>
#include <utility>

#include "glimpse/image/video.h"

/// What reads and writes video files lies in a library of its own, libglimpse_video.so, which is loaded when
/// the first video is opened: FFmpeg's libraries bring seventy others with them.
namespace glimpse::detail {

/// The bytes of a file, for several readers at once.
class FileBytes {
 public:
  virtual ~FileBytes() = default;
  virtual int64_t size() const = 0;
  /// Reads up to to.size() bytes from `offset`; how many there were, 0 at the end, -1 when reading failed.
  virtual int64_t read(int64_t offset, std::span<uint8_t> to) const noexcept = 0;
};

/// A file that is in memory, as a text or a list of bytes.
template <class Bytes>
class InMemory : public FileBytes {
 public:
  explicit InMemory(Bytes bytes) : bytes_(std::move(bytes)) {}
  int64_t size() const override { return std::ssize(bytes_); }
  int64_t read(int64_t offset, std::span<uint8_t> to) const noexcept override {
    const int64_t count = std::clamp<int64_t>(size() - offset, 0, std::ssize(to));
    if (count > 0) std::memcpy(to.data(), bytes_.data() + offset, static_cast<size_t>(count));
    return count;
  }

 private:
  const Bytes bytes_;
};

/// A video that is written: where to, and for messages.
struct VideoOutput {
  std::ostream& stream;  ///< of a file, as its beginning is written last
  const std::string& name;
  const char* container;  ///< FFmpeg's name of it
  double fps;
};

class VideoModule {
 public:
  virtual ~VideoModule() = default;
  /// `container`: FFmpeg's name for what the bytes look like; nothing else is tried.
  virtual std::shared_ptr<const VideoSource> open(std::shared_ptr<const FileBytes> bytes,
                                                  const char* container, const std::string& name) const = 0;
  /// Encodes what `next` gives until it gives nothing.
  virtual void write(const VideoOutput& output, const std::function<std::optional<Image>()>& next) const = 0;
};

/// The module, loaded at the first call. Error when it cannot be: a build without video, a library that is
/// not installed.
const VideoModule& video_module();

/// A video file of bytes that come from wherever FileBytes has them; see open_video.
std::shared_ptr<const VideoSource> open_video(std::shared_ptr<const FileBytes> bytes,
                                              const std::string& name);

/// Threads that a decoder or encoder may use: as many as this thread's other work.
int video_threads();

}  // namespace glimpse::detail

/// What the module exports. Its name changes with VideoModule.
extern "C" const glimpse::detail::VideoModule* glimpse_video_1();
