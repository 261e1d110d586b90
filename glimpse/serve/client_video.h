#pragma once

#include <chrono>
#include <mutex>
#include <stop_token>
#include <string>
#include <vector>

#include "glimpse/image/overlay.h"
#include "glimpse/image/video.h"

namespace glimpse::serve {

struct VideoLimits {
  std::stop_token stop;            ///< whether anybody waits for its frames
  std::chrono::milliseconds time;  ///< opening it may take, and reading its frames
  int64_t max_pixels;              ///< of a frame that is a picture
};

/// A client's video. Reading it ends with an Error when nobody waits for it any more or it takes too long,
/// also in the midst of a stretch of frames that are only passed over.
class ClientVideo final : public VideoSource {
 public:
  /// A file's bytes. Error: no video, or too slow to open.
  ClientVideo(std::string file, VideoLimits limits);
  /// Frames, each a picture's file.
  ClientVideo(std::vector<std::string> pictures, VideoLimits limits);
  ~ClientVideo() override;

  const std::string& name() const override;
  const VideoInfo& info() const override { return source_->info(); }
  void read(std::span<const int64_t> indices,
            const std::function<void(size_t, const Image&)>& take) const override;

  /// What was read, small and one beside the other: of each pair of frames, which a temporal slice is made
  /// of, the first, with what the slice's grid keeps tinted.
  Image sheet(std::span<const KeptGrid> slices) const;

 private:
  struct Clock;
  const std::shared_ptr<Clock> clock_;
  std::shared_ptr<const VideoSource> source_;
  mutable std::mutex mutex_;
  mutable std::vector<Image> small_;  // of each pair of frames the first
};

}  // namespace glimpse::serve
