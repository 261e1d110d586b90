#include "glimpse/eval/line_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "glimpse/base/check.h"

namespace glimpse {
namespace fs = std::filesystem;
using nlohmann::json;

void repair_lines(const fs::path& file) {
  std::error_code ignored;
  if (!fs::exists(file, ignored)) return;
  check(fs::is_regular_file(file, ignored), file.string(), ": exists and is not a regular file");
  std::ifstream in(file, std::ios::binary);
  uintmax_t whole = 0;
  for (std::string text; std::getline(in, text) && !in.eof();) whole += text.size() + 1;
  if (fs::file_size(file) != whole) fs::resize_file(file, whole);
}

void visit_whole_lines(const fs::path& file, const std::function<void(const json&)>& visit) {
  std::error_code ignored;
  if (!fs::exists(file, ignored)) return;
  std::ifstream in(file, std::ios::binary);
  size_t number = 0;
  for (std::string text; std::getline(in, text) && !in.eof();) {
    ++number;
    const json line = json::parse(text, nullptr, false);
    check(!line.is_discarded(), file.string(), ":", number, ": not valid JSON");
    visit(line);
  }
}

LineFile::LineFile(const fs::path& file) : name_(file.string()) {
  fd_ = ::open(file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  check(fd_ >= 0, name_, ": cannot be written: ", std::strerror(errno));
  if (::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
    ::close(fd_);
    fail(name_, ": another process is writing it; do two processes have the same rank?");
  }
  repair_lines(file);
}

LineFile::~LineFile() {
  ::close(fd_);
}

void LineFile::write(const json& line) {
  const std::string text = line.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
  for (size_t done = 0; done < text.size();) {
    const ssize_t count = ::write(fd_, text.data() + done, text.size() - done);
    if (count < 0 && errno == EINTR) continue;
    check(count > 0, name_, ": writing failed: ", std::strerror(errno));
    done += static_cast<size_t>(count);
  }
}

FolderLock::FolderLock(const fs::path& file) {
  fd_ = ::open(file.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
  check(fd_ >= 0, file.string(), ": cannot be written: ", std::strerror(errno));
  while (::flock(fd_, LOCK_EX) != 0) check(errno == EINTR, file.string(), ": cannot be locked");
}

FolderLock::~FolderLock() {
  ::close(fd_);
}

}  // namespace glimpse
