#pragma once

#include <filesystem>
#include <list>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "glimpse/models/prompt.h"
#include "glimpse/serve/client_video.h"
#include "glimpse/serve/fetcher.h"
#include "glimpse/serve/protocol.h"

namespace glimpse::serve {

struct MediaOptions {
  std::filesystem::path media_path;             ///< file: names files below it; "": none
  int64_t max_pixels = 64 << 20;                ///< of one picture
  size_t cache_bytes = size_t{256} << 20;       ///< of files that clients may name again by uuid
  std::chrono::milliseconds video_time{60000};  ///< reading the frames of one video may take
  FetchOptions fetch;  ///< of http: and https:; the bounds of files hold for the others, too
};

/// Gets the pictures and videos that requests name. May be used by several threads; it waits for disks.
class ClientMedia {
 public:
  explicit ClientMedia(MediaOptions options);
  /// Whether the file must be fetched before picture() or video().
  static bool remote(const MediumSource& source);
  /// Fetches it. Errors: as Fetcher::get.
  void fetch(const MediumSource& source, std::stop_token stop, Fetcher::Then then) {
    fetcher_.get(source, std::move(stop), std::move(then));
  }
  /// The picture, decoded as `bounds` say; `fetched`: the file of a remote one. Errors: ApiError (400) that
  /// says what is wrong with it.
  Image picture(const MediumSource& source, const ImageBounds& bounds, const std::string* fetched = nullptr);
  /// The video, of which no frame is decoded yet. A data: URL of video/jpeg holds its frames, with commas
  /// between them. Errors likewise.
  std::shared_ptr<const ClientVideo> video(const MediumSource& source, std::stop_token stop,
                                           const std::string* fetched = nullptr);
  /// Ends what is still fetched.
  void stop() { fetcher_.stop(); }

 private:
  std::string bytes_of(const MediumSource& source, const std::string* fetched);
  std::string read_file(const MediumSource& source) const;
  void remember(const std::string& uuid, const std::string& bytes);

  const MediaOptions options_;
  Fetcher fetcher_;
  std::mutex mutex_;
  std::list<std::pair<std::string, std::string>> recent_;  // uuid and file, the last used first
  std::map<std::string, decltype(recent_)::iterator> by_uuid_;
  size_t cached_ = 0;
};

/// A URL's text with %41 and the like as what they stand for. Error: a '%' that begins nothing.
std::string decode_percent(std::string_view text);

}  // namespace glimpse::serve
