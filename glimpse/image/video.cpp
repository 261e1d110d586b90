#include "glimpse/image/video.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>

#include "glimpse/base/check.h"
#include "glimpse/image/frame_folder.h"
#include "glimpse/image/video_module.h"

namespace glimpse {
namespace {

namespace fs = std::filesystem;

class OpenFile : public detail::FileBytes {
 public:
  OpenFile(const fs::path& path, const std::string& name) {
    // Opening a named pipe would wait for somebody to write to it.
    file_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    check(file_ >= 0, name, ": ", errno == ENOENT ? "no such file" : std::strerror(errno));
    struct stat what {};
    const bool regular = ::fstat(file_, &what) == 0 && S_ISREG(what.st_mode);
    if (!regular) ::close(file_);
    check(regular, name, ": is neither a file nor a folder");
    size_ = what.st_size;
  }
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;
  ~OpenFile() override { ::close(file_); }

  int64_t size() const override { return size_; }
  int64_t read(int64_t offset, std::span<uint8_t> to) const noexcept override {
    while (true) {
      const ssize_t count = ::pread(file_, to.data(), to.size(), offset);
      if (count >= 0 || errno != EINTR) return count;
    }
  }

 private:
  int file_ = -1;
  int64_t size_ = 0;
};

/// FFmpeg's name of the container that a file's first bytes are of, or "".
const char* container_of(std::string_view head) {
  using namespace std::string_view_literals;
  if (head.size() >= 12) {
    const std::string_view box = head.substr(4, 4);
    for (const auto known : {"ftyp"sv, "moov"sv, "mdat"sv, "wide"sv, "free"sv, "skip"sv, "pnot"sv})
      if (box == known) return "mov";
    if (head.starts_with("RIFF"sv) && (head.substr(8, 4) == "AVI "sv || head.substr(8, 4) == "AVIX"sv))
      return "avi";
  }
  if (head.starts_with("\x1A\x45\xDF\xA3"sv)) return "matroska";
  constexpr size_t packet = 188;
  if (head.size() > 2 * packet && head[0] == 'G' && head[packet] == 'G' && head[2 * packet] == 'G')
    return "mpegts";
  return "";
}

/// AVIF and HEIC, whose container is that of MP4.
bool is_picture(std::string_view head) {
  if (head.size() < 12 || head.substr(4, 4) != "ftyp") return false;
  const std::string_view brand = head.substr(8, 4);
  return brand == "avif" || brand == "heic" || brand == "heix" || brand == "mif1";
}

}  // namespace

std::shared_ptr<const VideoSource> detail::open_video(std::shared_ptr<const FileBytes> bytes,
                                                      const std::string& name) {
  check(bytes->size() > 0, name, ": the video is empty (0 bytes)");
  std::string head(1024, '\0');
  const int64_t count = bytes->read(0, {reinterpret_cast<uint8_t*>(head.data()), head.size()});
  check(count >= 0, name, ": reading failed");
  head.resize(count);
  const char* const container = container_of(head);
  check(!head.starts_with("version https://git-lfs"), name,
        ": is a Git LFS pointer; the video was not fetched");
  check(*container && !is_picture(head), name, ": is ",
        *container ? "a picture" : "no video file that is known",
        "; known are MP4, MOV, MKV, WebM, AVI and MPEG-TS");
  return video_module().open(std::move(bytes), container, name);
}

std::shared_ptr<const VideoSource> open_video(const fs::path& path) {
  std::error_code ignored;
  if (fs::is_directory(path, ignored)) return detail::open_frame_folder(path);
  const std::string name = path.string();
  return detail::open_video(std::make_shared<OpenFile>(path, name), name);
}

std::shared_ptr<const VideoSource> open_video(std::vector<uint8_t> bytes, const std::string& name) {
  return detail::open_video(std::make_shared<detail::InMemory<std::vector<uint8_t>>>(std::move(bytes)), name);
}

}  // namespace glimpse
