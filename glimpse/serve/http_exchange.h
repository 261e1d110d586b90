#pragma once

#include <atomic>
#include <boost/asio/io_context.hpp>
#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "glimpse/serve/http.h"

namespace glimpse::serve {

class Connection {
 public:
  virtual ~Connection() = default;
  // `last`: whether the connection is kept behind these bytes, which end the answer; nothing: more will come.
  virtual void put(std::string bytes, std::optional<bool> last) = 0;
  virtual void abandoned() = 0;
  virtual void sweep(std::chrono::steady_clock::time_point now) = 0;
  virtual void drain() = 0;
  virtual void close() = 0;
};

/// One request's way back. It outlives its connection if somebody keeps it.
class Exchange final : public Reply, public std::enable_shared_from_this<Exchange> {
 public:
  /// `old`: the client speaks HTTP/1.0 and knows no chunks; `head_only`: it wants no body; `over` is called
  /// once, with the status, when the answer is whole or the client has gone.
  Exchange(boost::asio::io_context& io, std::weak_ptr<Connection> connection,
           std::vector<std::pair<std::string, std::string>> headers, bool keep_alive, bool old,
           bool head_only, std::function<void(int)> over)
      : io_(io),
        connection_(std::move(connection)),
        headers_(std::move(headers)),
        keep_alive_(keep_alive),
        old_(old),
        head_only_(head_only),
        over_(std::move(over)) {}
  ~Exchange() override;

  void send(HttpResponse response) override;
  void begin(HttpResponse head) override;
  void write(std::string piece) override;
  void end() override;
  void on_gone(std::function<void()> call) override;
  /// The client has gone away.
  void tell_gone();

 private:
  std::string head(const HttpResponse& response, const std::string& framing);
  std::string chunk(const std::string& piece) const;
  void put(std::string bytes, bool last);

  boost::asio::io_context& io_;
  const std::weak_ptr<Connection> connection_;
  const std::vector<std::pair<std::string, std::string>> headers_;
  std::atomic<bool> keep_alive_;
  const bool old_, head_only_;
  std::function<void(int)> over_;
  std::atomic<int> status_ = 0;
  std::atomic<bool> ended_ = false;
  std::mutex mutex_;
  bool gone_ = false;
  std::vector<std::function<void()>> on_gone_;
};

}  // namespace glimpse::serve
