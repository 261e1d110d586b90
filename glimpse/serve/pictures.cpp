#include "glimpse/serve/pictures.h"

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

bool Pictures::remote(const PictureSource& source) {
  return source.url.starts_with("http://") || source.url.starts_with("https://");
}

Pictures::Pictures(PictureOptions options) : options_(std::move(options)), fetcher_(options_.fetch) {
  if (!options_.media_path.empty())
    check(fs::is_directory(options_.media_path), "--media-path: ", options_.media_path.string(),
          " is no folder");
}

// Folder by folder without following a link, so that none leads out, however the path is spelled and whatever
// happens to it meanwhile.
std::string Pictures::read_file(const std::string& url) const {
  if (options_.media_path.empty())
    refuse_picture("file: URLs are not allowed here; the server's --media-path names a folder for them",
                   "file_not_allowed");
  std::string path = decode_percent(std::string_view(url).substr(7));  // behind file://
  if (path.starts_with("localhost/")) path.erase(0, 9);
  if (path.find('\0') != path.npos) refuse_picture("a file name with a zero byte");
  // Either a whole path below the folder, or one relative to it.
  const std::string root = fs::absolute(options_.media_path).lexically_normal().string();
  if (path.starts_with(root + "/")) path.erase(0, root.size());
  Handle at(open(options_.media_path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  std::vector<std::string> parts;
  for (const fs::path& part : fs::path(path).relative_path()) parts.push_back(part.string());
  if (parts.empty()) refuse_picture("file: URL without a file name");
  for (size_t i = 0; i < parts.size(); ++i) {
    if (parts[i] == "..") refuse_picture("a file: URL may not contain '..'", "file_not_allowed");
    const bool last = i + 1 == parts.size();
    const int next = openat(at.fd, parts[i].c_str(),
                            O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | (last ? 0 : O_DIRECTORY));
    if (next < 0 && errno == ELOOP)
      refuse_picture("a file: URL may not lead through a symbolic link", "file_not_allowed");
    if (next < 0) refuse_picture("file: URL: " + std::string(std::strerror(errno)));
    at.reset(next);
  }
  struct stat about {};
  if (fstat(at.fd, &about) != 0 || !S_ISREG(about.st_mode)) refuse_picture("file: URL: no file");
  if (static_cast<size_t>(about.st_size) > options_.fetch.max_bytes) refuse_size(options_.fetch.max_bytes);
  std::string bytes(static_cast<size_t>(about.st_size), '\0');
  size_t got = 0;
  while (got < bytes.size()) {
    const ssize_t count = ::read(at.fd, bytes.data() + got, bytes.size() - got);
    if (count <= 0) refuse_picture("file: URL: the file cannot be read");
    got += static_cast<size_t>(count);
  }
  return bytes;
}

std::string Pictures::bytes_of(const PictureSource& source, const std::string* fetched) {
  const std::string& url = source.url;
  if (url.empty()) {
    const std::lock_guard lock(mutex_);
    const auto found = by_uuid_.find(source.uuid);
    if (found == by_uuid_.end())
      refuse_picture("no picture is known as uuid '" + source.uuid + "' (any more); send it again",
                     "image_not_cached");
    recent_.splice(recent_.begin(), recent_, found->second);
    return found->second->second;
  }
  std::string bytes;
  if (url.starts_with("data:")) {
    const size_t comma = url.find(',');
    if (comma == url.npos || comma > 256) refuse_picture("a data: URL has a comma before its data");
    const std::string_view head = std::string_view(url).substr(0, comma),
                           data = std::string_view(url).substr(comma + 1);
    if (!head.ends_with(";base64"))
      refuse_picture("a data: URL must be base64, as in data:image/png;base64,...");
    if (data.size() / 4 * 3 > options_.fetch.max_bytes + 3) refuse_size(options_.fetch.max_bytes);
    try {
      bytes = decode_base64(data);
    } catch (const Error& error) {
      refuse_picture(std::string("data: URL: ") + error.what());
    }
  } else if (url.starts_with("file://")) {
    bytes = read_file(url);
  } else if (fetched) {
    bytes = *fetched;
  } else {
    refuse_picture("an image's url begins with data:, https://, http:// or file://, not with '" +
                   url.substr(0, 16) + "'");
  }
  if (!source.uuid.empty()) remember(source.uuid, bytes);
  return bytes;
}

void Pictures::remember(const std::string& uuid, const std::string& bytes) {
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

Image Pictures::get(const PictureSource& source, const ImageBounds& bounds, const std::string* fetched) {
  const std::string bytes = bytes_of(source, fetched);
  DecodeOptions decoding = bounds.decode_options();
  decoding.max_pixels = std::min(decoding.max_pixels, options_.max_pixels);
  try {
    return decode_image({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, "image", decoding);
  } catch (const Error& error) {
    refuse_picture(error.what());
  }
}

}  // namespace glimpse::serve
