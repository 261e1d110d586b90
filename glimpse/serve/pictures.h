#pragma once

#include <filesystem>
#include <list>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "glimpse/models/prompt.h"
#include "glimpse/serve/protocol.h"

namespace glimpse::serve {

struct PictureOptions {
  std::filesystem::path media_path;        ///< file: names pictures below it; "": none
  size_t max_bytes = size_t{64} << 20;     ///< of one picture's file
  int64_t max_pixels = 64 << 20;           ///< of one picture
  size_t cache_bytes = size_t{256} << 20;  ///< of files that clients may name again by uuid
};

/// Gets the pictures that requests name. May be used by several threads; it waits for disks.
class Pictures {
 public:
  explicit Pictures(PictureOptions options);
  /// The picture, decoded as `bounds` say. Errors: ApiError (400) that says what is wrong with it.
  Image get(const PictureSource& source, const ImageBounds& bounds);

 private:
  std::string bytes_of(const PictureSource& source);
  std::string read_file(const std::string& url) const;
  void remember(const std::string& uuid, const std::string& bytes);

  const PictureOptions options_;
  std::mutex mutex_;
  std::list<std::pair<std::string, std::string>> recent_;  // uuid and file, the last used first
  std::map<std::string, decltype(recent_)::iterator> by_uuid_;
  size_t cached_ = 0;
};

/// A URL's text with %41 and the like as what they stand for. Error: a '%' that begins nothing.
std::string decode_percent(std::string_view text);

}  // namespace glimpse::serve
