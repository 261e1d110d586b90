#include "glimpse/serve/client_media.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "glimpse/base/check.h"

namespace glimpse::serve {

namespace fs = std::filesystem;

namespace {

// A file descriptor that is closed.
struct Handle {
  int fd = -1;
  Handle() = default;
  explicit Handle(int of) : fd(of) {}
  Handle(const Handle&) = delete;
  ~Handle() {
    if (fd >= 0) close(fd);
  }
  void reset(int to) {
    if (fd >= 0) close(fd);
    fd = to;
  }
};

int hex(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

}  // namespace

std::string decode_percent(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      out += text[i];
      continue;
    }
    check(i + 2 < text.size() && hex(text[i + 1]) >= 0 && hex(text[i + 2]) >= 0,
          "a '%' that begins no character");
    out += static_cast<char>(hex(text[i + 1]) * 16 + hex(text[i + 2]));
    i += 2;
  }
  return out;
}

bool ClientMedia::remote(const MediumSource& source) {
  return source.url.starts_with("http://") || source.url.starts_with("https://");
}

ClientMedia::ClientMedia(MediaOptions options) : options_(std::move(options)), fetcher_(options_.fetch) {
  if (!options_.media_path.empty())
    check(fs::is_directory(options_.media_path), "--media-path: ", options_.media_path.string(),
          " is no folder");
}

// Folder by folder without following a link, so that none leads out, however the path is spelled and whatever
// happens to it meanwhile.
std::string ClientMedia::read_file(const MediumSource& source) const {
  if (options_.media_path.empty())
    refuse_medium(source,
                  "file: URLs are not allowed here; the server's --media-path names a folder for them",
                  "file_not_allowed");
  std::string path = decode_percent(std::string_view(source.url).substr(7));  // behind file://
  if (path.starts_with("localhost/")) path.erase(0, 9);
  if (path.find('\0') != path.npos) refuse_medium(source, "a file name with a zero byte");
  // Either a whole path below the folder, or one relative to it.
  const std::string root = fs::absolute(options_.media_path).lexically_normal().string();
  if (path.starts_with(root + "/")) path.erase(0, root.size());
  Handle at(open(options_.media_path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  std::vector<std::string> parts;
  for (const fs::path& part : fs::path(path).relative_path()) parts.push_back(part.string());
  if (parts.empty()) refuse_medium(source, "file: URL without a file name");
  for (size_t i = 0; i < parts.size(); ++i) {
    if (parts[i] == "..") refuse_medium(source, "a file: URL may not contain '..'", "file_not_allowed");
    const bool last = i + 1 == parts.size();
    const int next = openat(at.fd, parts[i].c_str(),
                            O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | (last ? 0 : O_DIRECTORY));
    if (next < 0 && errno == ELOOP)
      refuse_medium(source, "a file: URL may not lead through a symbolic link", "file_not_allowed");
    if (next < 0) refuse_medium(source, "file: URL: " + std::string(std::strerror(errno)));
    at.reset(next);
  }
  struct stat about {};
  if (fstat(at.fd, &about) != 0 || !S_ISREG(about.st_mode)) refuse_medium(source, "file: URL: no file");
  const size_t most = options_.fetch.max_bytes_of(source);
  if (static_cast<size_t>(about.st_size) > most) refuse_size(source, most);
  std::string bytes(static_cast<size_t>(about.st_size), '\0');
  size_t got = 0;
  while (got < bytes.size()) {
    const ssize_t count = ::read(at.fd, bytes.data() + got, bytes.size() - got);
    if (count <= 0) refuse_medium(source, "file: URL: the file cannot be read");
    got += static_cast<size_t>(count);
  }
  return bytes;
}

std::string ClientMedia::bytes_of(const MediumSource& source, const std::string* fetched) {
  const std::string& url = source.url;
  if (url.empty()) {
    const std::lock_guard lock(mutex_);
    const auto found = by_uuid_.find(source.uuid);
    if (found == by_uuid_.end())
      refuse_medium(
          source, "no " + source.noun() + " is known as uuid '" + source.uuid + "' (any more); send it again",
          "image_not_cached");
    recent_.splice(recent_.begin(), recent_, found->second);
    return found->second->second;
  }
  std::string bytes;
  if (url.starts_with("data:")) {
    const size_t comma = url.find(',');
    if (comma == url.npos || comma > 256) refuse_medium(source, "a data: URL has a comma before its data");
    const std::string_view head = std::string_view(url).substr(0, comma),
                           data = std::string_view(url).substr(comma + 1);
    if (!head.ends_with(";base64"))
      refuse_medium(source, std::string("a data: URL must be base64, as in data:") +
                                (source.video ? "video/mp4" : "image/png") + ";base64,...");
    const size_t most = options_.fetch.max_bytes_of(source);
    if (data.size() / 4 * 3 > most + 3) refuse_size(source, most);
    try {
      bytes = decode_base64(data);
    } catch (const Error& error) {
      refuse_medium(source, std::string("data: URL: ") + error.what());
    }
  } else if (url.starts_with("file://")) {
    bytes = read_file(source);
  } else if (fetched) {
    bytes = *fetched;
  } else {
    refuse_medium(source, (source.video ? "a video's" : "an image's") +
                              (" url begins with data:, https://, http:// or file://, not with '" +
                               url.substr(0, 16) + "'"));
  }
  if (!source.uuid.empty()) remember(source.uuid, bytes);
  return bytes;
}

void ClientMedia::remember(const std::string& uuid, const std::string& bytes) {
  if (bytes.size() > options_.cache_bytes) return;
  const std::lock_guard lock(mutex_);
  const auto forget = [&](decltype(recent_)::iterator entry) {
    cached_ -= entry->second.size();
    by_uuid_.erase(entry->first);
    recent_.erase(entry);
  };
  if (const auto found = by_uuid_.find(uuid); found != by_uuid_.end()) forget(found->second);
  recent_.emplace_front(uuid, bytes);
  by_uuid_[uuid] = recent_.begin();
  cached_ += bytes.size();
  while (cached_ > options_.cache_bytes) forget(std::prev(recent_.end()));
}

Image ClientMedia::picture(const MediumSource& source, const ImageBounds& bounds,
                           const std::string* fetched) {
  const std::string bytes = bytes_of(source, fetched);
  DecodeOptions decoding = bounds.decode_options();
  decoding.max_pixels = std::min(decoding.max_pixels, options_.max_pixels);
  try {
    return decode_image({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, "image", decoding);
  } catch (const Error& error) {
    refuse_medium(source, error.what());
  }
}

std::shared_ptr<const ClientVideo> ClientMedia::video(const MediumSource& source, std::stop_token stop,
                                                      const std::string* fetched) {
  const VideoLimits limits{std::move(stop), options_.video_time, options_.max_pixels};
  // As vLLM's clients send frames: pictures with commas between them.
  constexpr std::string_view frames = "data:video/jpeg;base64,";
  try {
    if (source.url.starts_with(frames)) {
      constexpr size_t kMost = 10000;
      std::vector<std::string> pictures;
      size_t bytes = 0;
      for (size_t begin = frames.size(); begin <= source.url.size();) {
        const size_t end = std::min(source.url.find(',', begin), source.url.size());
        pictures.push_back(decode_base64(std::string_view(source.url).substr(begin, end - begin)));
        bytes += pictures.back().size();
        begin = end + 1;
        if (pictures.size() > kMost)
          refuse_medium(source, concat("a video of pictures may have at most ", kMost, " frames"));
      }
      if (bytes > options_.fetch.max_video_bytes) refuse_size(source, options_.fetch.max_video_bytes);
      return std::make_shared<ClientVideo>(std::move(pictures), limits);
    }
    return std::make_shared<ClientVideo>(bytes_of(source, fetched), limits);
  } catch (const Error& error) {
    refuse_medium(source, error.what());
  }
}

}  // namespace glimpse::serve
