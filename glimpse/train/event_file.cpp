#include "glimpse/train/event_file.h"

#include <isa-l/crc.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <iomanip>
#include <limits>
#include <protozero/pbf_writer.hpp>

#include "glimpse/base/check.h"

namespace glimpse {
namespace fs = std::filesystem;
namespace {

using protozero::pbf_writer;

// Field numbers of TensorFlow's event.proto and summary.proto.
namespace event {
enum { wall_time = 1, step = 2, file_version = 3, summary = 5, session_log = 7 };
}
namespace session_log {
enum { status = 1 };
enum { start = 1 };
}  // namespace session_log
namespace summary_of {
enum { value = 1 };
}
namespace value_of {
enum { tag = 1, simple_value = 2 };
}
double now_s() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::string host_name() {
  std::array<char, 256> name{};
  if (gethostname(name.data(), name.size() - 1) != 0 || name[0] == '\0') return "localhost";
  for (char& c : name)
    if (c == '/') c = '_';
  return name.data();
}

/// The first such name that is free: two files may be begun in one second.
fs::path fresh_path(const fs::path& folder) {
  const std::string name = concat("events.out.tfevents.", std::setw(10), std::setfill('0'),
                                  static_cast<int64_t>(now_s()), ".", host_name());
  fs::path path = folder / name;
  for (int i = 1; fs::exists(path); ++i) path = folder / concat(name, ".", i);
  return path;
}

std::string little_endian(uint64_t number, int bytes) {
  std::string out;
  for (int i = 0; i < bytes; ++i) out += static_cast<char>(number >> (8 * i) & 0xff);
  return out;
}

/// The checksum of TensorFlow's record files: CRC-32C, rotated and shifted.
std::string masked_crc(std::string data) {
  auto* bytes = reinterpret_cast<unsigned char*>(data.data());
  const uint32_t crc = ~crc32_iscsi(bytes, static_cast<int>(data.size()), ~0U);
  return little_endian(((crc >> 15) | (crc << 17)) + 0xa282ead8U, 4);
}

/// The bytes of a protobuf message that `fill` writes.
template <class Fill>
std::string message(const Fill& fill) {
  std::string bytes;
  pbf_writer out(bytes);
  fill(out);
  return bytes;
}

}  // namespace

EventFile::EventFile(const fs::path& folder, int64_t first_step) {
  std::error_code error;
  fs::create_directories(folder, error);
  check(!error, "cannot make the folder ", folder.string(), ": ", error.message());
  path_ = fresh_path(folder);
  out_.open(path_, std::ios::binary);
  check(out_.is_open(), path_.string(), ": cannot be created");
  write(0, message([](pbf_writer& out) { out.add_string(event::file_version, "brain.Event:2"); }));
  write(first_step, message([](pbf_writer& out) {
          pbf_writer(out, event::session_log).add_enum(session_log::status, session_log::start);
        }));
  flush();
}

void EventFile::write(int64_t step, const std::string& fields) {
  const std::string data = message([&](pbf_writer& out) {
                             out.add_double(event::wall_time, now_s());
                             out.add_int64(event::step, step);
                           }) +
                           fields;
  check(data.size() <= std::numeric_limits<int32_t>::max(), path_.string(), ": an event of ", data.size(),
        " bytes is too large");
  const std::string length = little_endian(data.size(), 8);
  out_ << length << masked_crc(length) << data << masked_crc(data);
}

void EventFile::scalar(const std::string& tag, double value, int64_t step) {
  const std::string named = message([&](pbf_writer& out) {
    out.add_string(value_of::tag, tag);
    out.add_float(value_of::simple_value, static_cast<float>(value));
  });
  const std::string summary = message([&](pbf_writer& out) { out.add_message(summary_of::value, named); });
  write(step, message([&](pbf_writer& out) { out.add_message(event::summary, summary); }));
}

void EventFile::flush() {
  out_.flush();
  check(out_.good(), path_.string(), ": writing failed (disk full?)");
}

}  // namespace glimpse
