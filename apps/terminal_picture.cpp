#include "terminal_picture.h"

#include <poll.h>
#include <sixel.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <sstream>
#include <string_view>
#include <vector>

#include "glimpse/base/check.h"
#include "glimpse/base/timer.h"
#include "glimpse/base/web_text.h"
#include "glimpse/image/overlay.h"
#include "glimpse/image/resize.h"

namespace glimpse::app {

namespace {

constexpr std::string_view kIntroducer = "\033[?", kGraphics = "\033_G", kEnd = "\033\\";
// Whether kitty's protocol is known (a picture of one pixel that is not shown), then what terminal it is.
constexpr std::string_view kQuestions = "\033_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\033\\\033[c";

// Fits into most windows, and is soon sent over a slow line.
Image shrunk(const Image& image) {
  constexpr double most = 640;
  const double factor = std::min(1.0, most / std::max(image.width, image.height));
  const auto side = [&](int pixels) { return std::max(1, static_cast<int>(pixels * factor)); };
  return factor < 1 ? resize(image, side(image.width), side(image.height)) : image;
}

std::string kitty_sequence(const Image& image) {
  constexpr size_t most = 4096;  // of a piece
  const std::vector<uint8_t> png = encode_png(image);
  const std::string data = base64({reinterpret_cast<const char*>(png.data()), png.size()});
  std::string out;
  for (size_t at = 0; at < data.size(); at += most)
    out += concat(kGraphics, at == 0 ? "a=T,f=100,q=2," : "", "m=", at + most < data.size() ? 1 : 0, ";",
                  data.substr(at, most), kEnd);
  return out + "\n";
}

void check_sixel(SIXELSTATUS status) {
  check(SIXEL_SUCCEEDED(status),
        "the picture cannot be drawn as sixels: ", sixel_helper_format_error(status));
}

std::string sixel_sequence(const Image& image) {
  constexpr int colours = 256;
  std::string out;
  const auto append = [](char* data, int size, void* to) {
    static_cast<std::string*>(to)->append(data, size);
    return size;
  };
  sixel_output_t* output = nullptr;
  check_sixel(sixel_output_new(&output, append, &out, nullptr));
  const std::shared_ptr<sixel_output_t> output_owner(output, sixel_output_unref);
  sixel_dither_t* dither = nullptr;
  check_sixel(sixel_dither_new(&dither, colours, nullptr));
  const std::shared_ptr<sixel_dither_t> dither_owner(dither, sixel_dither_unref);
  std::vector<uint8_t> pixels = image.rgb;  // it is written to
  check_sixel(sixel_dither_initialize(dither, pixels.data(), image.width, image.height,
                                      SIXEL_PIXELFORMAT_RGB888, SIXEL_LARGE_AUTO, SIXEL_REP_AUTO,
                                      SIXEL_QUALITY_AUTO));
  constexpr int depth = 3;
  check_sixel(sixel_encode(pixels.data(), image.width, image.height, depth, dither, output));
  return out + "\n";
}

// Takes the sequence out of `bytes` that begins and ends so; nothing if there is none that is whole.
std::optional<std::string> take(std::string& bytes, std::string_view begin, std::string_view end) {
  const size_t at = bytes.find(begin);
  const size_t last = at == bytes.npos ? at : bytes.find(end, at + begin.size());
  if (last == bytes.npos) return std::nullopt;
  const std::string taken = bytes.substr(at, last + end.size() - at);
  bytes.erase(at, taken.size());
  return taken;
}

}  // namespace

std::optional<PictureProtocol> read_picture_answers(const std::string& bytes, std::string& typed) {
  std::string rest = bytes;
  const auto kitty = take(rest, kGraphics, kEnd);
  const auto terminal = take(rest, kIntroducer, "c");
  if (!terminal) return std::nullopt;
  typed += rest;
  if (kitty && kitty->find(";OK") != kitty->npos) return PictureProtocol::kitty;
  // "ESC [ ? 62 ; 4 ; 22 c": what terminal it is, then its features, of which 4 is sixel graphics.
  std::istringstream numbers(*terminal);
  std::string kind;
  std::getline(numbers, kind, ';');
  for (std::string feature; std::getline(numbers, feature, ';');)
    if (feature == "4" || feature == "4c") return PictureProtocol::sixel;
  return PictureProtocol::none;
}

PictureProtocol ask_for_pictures(std::string& typed) {
  constexpr double patience_ms = 1000;
  constexpr size_t most = 4096;
  termios before{};
  if (!isatty(STDIN_FILENO) || !isatty(STDERR_FILENO) || tcgetattr(STDIN_FILENO, &before) != 0)
    return PictureProtocol::none;
  termios quiet = before;
  quiet.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);
  tcsetattr(STDIN_FILENO, TCSADRAIN, &quiet);
  const std::shared_ptr<const termios> restore(&before, [](const termios* modes) {
    tcsetattr(STDIN_FILENO, TCSADRAIN, modes);
    constexpr std::string_view wiped = "\r\033[K";  // what a terminal shows that does not know the questions
    if (write(STDERR_FILENO, wiped.data(), wiped.size()) < 0) return;
  });
  if (write(STDERR_FILENO, kQuestions.data(), kQuestions.size()) != std::ssize(kQuestions))
    return PictureProtocol::none;
  const Timer timer;
  std::string bytes;
  while (bytes.size() < most) {
    const double left = patience_ms - timer.ms();
    pollfd file{STDIN_FILENO, POLLIN, 0};
    if (left <= 0 || poll(&file, 1, static_cast<int>(left) + 1) <= 0) break;
    char more[256];
    const ssize_t got = ::read(STDIN_FILENO, more, sizeof more);
    if (got <= 0) break;
    bytes.append(more, got);
    if (const auto protocol = read_picture_answers(bytes, typed)) return *protocol;
  }
  typed += bytes.substr(0, bytes.find('\033'));  // without half an answer
  return PictureProtocol::none;
}

std::string picture_sequence(const Image& image, PictureProtocol protocol) {
  if (protocol == PictureProtocol::none) return "";
  const Image small = shrunk(image);
  return protocol == PictureProtocol::kitty ? kitty_sequence(small) : sixel_sequence(small);
}

}  // namespace glimpse::app
