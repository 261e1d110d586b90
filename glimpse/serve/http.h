#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace glimpse::serve {

/// What a client asked.
struct HttpRequest {
  std::string method, path;                    ///< "POST", "/v1/models" (as sent, without what follows a '?')
  std::map<std::string, std::string> headers;  ///< by names in small letters
  std::string body;
  std::string peer;              ///< the client's address
  std::shared_ptr<void> memory;  ///< while it lives the body counts against HttpOptions::max_bodies

  /// The header's value, or "".
  std::string header(const std::string& name) const;
};

/// What it gets. `headers` go beside those that every answer has.
struct HttpResponse {
  int status = 200;
  std::string type = "application/json";
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers;
};

/// The way back to the client. Any thread may use it; what comes after the client has gone is dropped. One
/// that is dropped before its answer has ended gives the client an error 500, or in the middle of one a
/// closed connection.
class Reply {
 public:
  virtual ~Reply() = default;
  /// A whole answer.
  virtual void send(HttpResponse response) = 0;
  /// An answer whose body comes piece by piece.
  virtual void begin(HttpResponse head) = 0;
  virtual void write(std::string piece) = 0;
  virtual void end() = 0;
  /// Called once if the client goes away before the answer has ended; at once if it has already gone. By the
  /// server's thread: it must not wait.
  virtual void on_gone(std::function<void()> call) = 0;
};

/// A request that has been answered, or whose client has gone (status 499).
struct HttpLog {
  std::string peer, method, path, id;
  int status = 0;
  double ms = 0;
};

struct HttpOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 8080;                                      ///< 0: one that is free
  std::string certificate, key;                              ///< PEM files; with both TLS is spoken
  size_t max_header = 16 << 10;                              ///< bytes of a request's head
  size_t max_body = size_t{64} << 20;                        ///< bytes of a request's body
  size_t max_bodies = size_t{1} << 30;                       ///< bytes of all bodies that are held at a time
  size_t max_connections = 4096;                             ///< further clients wait until others leave
  std::chrono::milliseconds idle{75000};                     ///< a connection may wait for its next request
  std::chrono::milliseconds sending{60000};                  ///< a request may take to arrive
  std::chrono::milliseconds reading{60000};                  ///< a client may take to read what was sent
  std::vector<std::pair<std::string, std::string>> headers;  ///< of every answer
  std::function<void(const HttpLog&)> log = {};              ///< called by the server's thread
};

/// An HTTP/1.1 server on one thread: slow and idle connections cost memory only. Handlers are called by that
/// thread and must not wait; they answer through their Reply, at once or later.
class HttpServer {
 public:
  /// Looks at a request whose body has not come yet; what it returns is the answer, and the body is not read.
  using Gate = std::function<std::optional<HttpResponse>(const HttpRequest& head)>;
  using Handler = std::function<void(HttpRequest request, std::shared_ptr<Reply> reply)>;

  /// Listens. Error: the address cannot be used, or the certificate is none. `error_body` makes the body of
  /// what the server itself refuses.
  HttpServer(HttpOptions options, Gate gate, Handler handler,
             std::function<std::string(int status, const std::string& text)> error_body);
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;

  uint16_t port() const;
  /// Serves until stop().
  void run();
  /// From any thread: takes no further connections, and closes those that wait for a request.
  void drain();
  /// From any thread: run() returns; all connections are closed.
  void stop();
  size_t connections() const;
  /// Answers that are made or written.
  size_t answering() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// The words for a status.
std::string reason_of(int status);

}  // namespace glimpse::serve
