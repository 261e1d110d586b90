#pragma once

#include <memory>
#include <string>

#include "glimpse/image/libav/libav.h"
#include "glimpse/image/video_module.h"

namespace glimpse::libav {

/// Larger frames are refused before memory is taken: 8192 x 8192.
constexpr int64_t most_frame_pixels = int64_t{1} << 26;

/// A video file: its bytes and what they are taken for.
struct File {
  std::shared_ptr<const detail::FileBytes> bytes;
  const char* container;
  std::string name;
};

/// Where in a file a container's reader is, and how much it has read.
struct Reader {
  const detail::FileBytes& bytes;
  int64_t at = 0;
  int64_t budget = 0;  ///< bytes that it may still read: one that jumps back for ever comes to an end
  bool failed = false;
};

/// The packets of a file's video, in the order in which they are decoded. Nothing but the file's bytes is
/// ever read: what it refers to elsewhere is refused. Errors name the file.
class Input {
 public:
  explicit Input(const File& file);

  AVFormatContext& format() const { return *format_; }
  AVStream& stream() const { return *format_->streams[stream_]; }
  const AVCodec& decoder() const { return *decoder_; }
  /// The next packet; false at the end.
  bool read(AVPacket& packet) const;
  /// Goes to the last key frame at that time or before, by what the container takes for time; whether it
  /// could.
  bool seek(int64_t time) const;

 private:
  void open(const File& file);
  void choose_stream();
  [[noreturn]] void damaged(const std::string& why) const;

  std::string name_;
  std::unique_ptr<Reader> reader_;
  Io io_;  // outlives the format, which reads through it
  Format format_;
  int stream_ = -1;
  const AVCodec* decoder_ = nullptr;
};

}  // namespace glimpse::libav
