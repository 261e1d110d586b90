#pragma once

#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <stop_token>
#include <string>
#include <vector>

#include "glimpse/serve/protocol.h"

namespace glimpse::serve {

/// Throws ApiError (400): what is wrong with a picture or video that a client names. `code` is of pictures:
/// the one of videos says video for image.
[[noreturn]] void refuse_medium(const MediumSource& source, const std::string& text,
                                std::string code = "invalid_image");
/// The same for a file of more than `max_bytes`.
[[noreturn]] void refuse_size(const MediumSource& source, size_t max_bytes);

struct FetchOptions {
  /// Hosts that pictures and videos may come from: HOST (ports 80 and 443), HOST:PORT; *.HOST: those below
  /// it; *: every one.
  std::vector<std::string> domains;
  bool private_addresses = false;       ///< loopback and private networks may be asked too
  size_t max_bytes = size_t{64} << 20;  ///< of a picture's file
  size_t max_video_bytes = size_t{256} << 20;
  size_t max_held = size_t{1} << 30;         ///< of all files that are fetched or not yet decoded
  std::chrono::milliseconds timeout{10000};  ///< for one file, redirects included

  size_t max_bytes_of(const MediumSource& source) const { return source.video ? max_video_bytes : max_bytes; }
};

/// Gets files by http and https on one thread of its own, many at a time. What is connected to is checked
/// when the socket is made, so a name that changes its address, or an address in another spelling, gains
/// nothing; every redirect is checked as the first URL was.
class Fetcher {
 public:
  using Then = std::function<void(std::shared_ptr<const std::string> bytes, std::exception_ptr error)>;

  explicit Fetcher(FetchOptions options);
  ~Fetcher();
  Fetcher(const Fetcher&) = delete;
  /// Calls `then` once, on the fetcher's thread: it must not wait. Errors: ApiError (400), thrown if the URL
  /// is not allowed, given to `then` if it cannot be had; a request for `stop` ends the transfer.
  void get(const MediumSource& source, std::stop_token stop, Then then);
  /// Ends what still runs with an error; nothing is fetched afterwards.
  void stop();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace glimpse::serve
