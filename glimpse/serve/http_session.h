#pragma once

#include <algorithm>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <deque>
#include <random>

#include "glimpse/base/check.h"
#include "glimpse/serve/http_exchange.h"

namespace glimpse::serve {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::ip::tcp;
using Clock = std::chrono::steady_clock;
using boost::system::error_code;

// What a session needs to know of its server.
struct Shared {
  HttpOptions options;
  HttpServer::Gate gate;
  HttpServer::Handler handler;
  std::function<std::string(int, const std::string&)> error_body;
  std::shared_ptr<std::atomic<size_t>> bodies = std::make_shared<std::atomic<size_t>>(0);
  std::atomic<size_t> answering = 0;  // answers that are not written to the last byte
  bool draining = false;
  std::string own_id =
      concat("req-", std::hex, std::random_device()(), "-");  // begins ids that are made here
  uint64_t requests = 0;
};

// Counts a body as long as it lives.
class BodyMemory {
 public:
  explicit BodyMemory(std::shared_ptr<std::atomic<size_t>> all) : all_(std::move(all)) {}
  ~BodyMemory() { *all_ -= own_; }
  BodyMemory(const BodyMemory&) = delete;
  /// False when all bodies together would be more than `most`.
  bool grow(size_t own, size_t most) {
    const size_t more = own - own_;
    if (*all_ + more > most) return false;
    *all_ += more;
    own_ = own;
    return true;
  }

 private:
  std::shared_ptr<std::atomic<size_t>> all_;
  size_t own_ = 0;
};

/// The request's head, and the body as far as it has come.
HttpRequest request_of(const http::request<http::string_body>& from, const std::string& peer);

inline void handshake(tcp::socket&, const std::function<void(error_code)>& then) {
  then({});
}
inline void handshake(asio::ssl::stream<tcp::socket>& stream, std::function<void(error_code)> then) {
  stream.async_handshake(asio::ssl::stream_base::server, std::move(then));
}

/// What is wrong with a request's head beside what the parser sees, and the status for it; 0: nothing. A body
/// that is framed in doubt could be taken for the next request (RFC 9112 sections 3.2 and 6).
std::pair<int, std::string> objection(const http::request<http::string_body>& head);

/// One connection, plain or with TLS: requests one after the other. It reads on while an answer is made, so
/// that a client that goes away is noticed.
template <class Stream>
class Session final : public Connection, public std::enable_shared_from_this<Session<Stream>> {
 public:
  Session(asio::io_context& io, Stream stream, Shared& shared, std::string peer)
      : io_(io),
        stream_(std::move(stream)),
        shared_(shared),
        peer_(std::move(peer)),
        buffer_(shared.options.max_header + kRead) {}

  void start() {
    deadline_ = Clock::now() + shared_.options.sending;
    handshake(stream_, [self = this->shared_from_this()](error_code error) {
      if (error) return self->close();
      self->await_request();
      self->read();
    });
  }

  void put(std::string bytes, std::optional<bool> last) override {
    if (closed_) return;
    if (!bytes.empty()) out_.push_back(std::move(bytes));
    said_anything_ = true;
    if (last) last_ = last;
    write();
  }
  void abandoned() override {
    if (closed_ || !exchange_open_) return;
    if (said_anything_) return close();
    refuse(500, "the answer was lost; please report it");
  }
  void sweep(Clock::time_point now) override {
    if (now < deadline_) return;
    // A client that is slow to send learns why; the others are gone or idle.
    if (parser_ && !exchange_open_ && !discarding_ && busy_with_request_)
      return refuse(408, "the request took too long to arrive");
    close();
  }
  void drain() override {
    if (!exchange_open_ && !busy_with_request_) close();
  }
  void close() override {
    if (closed_) return;
    closed_ = true;
    if (std::exchange(exchange_open_, false)) --shared_.answering;
    error_code ignored;
    stream_.lowest_layer().shutdown(tcp::socket::shutdown_both, ignored);
    stream_.lowest_layer().close(ignored);
    gone();
  }

 private:
  static constexpr size_t kRead = 64 << 10;

  void await_request() {
    busy_with_request_ = said_anything_ = false;
    last_.reset();
    memory_.reset();
    parser_.emplace();
    parser_->eager(true);
    parser_->header_limit(static_cast<uint32_t>(shared_.options.max_header));
    parser_->body_limit(shared_.options.max_body);
    gated_ = false;
    deadline_ = Clock::now() + shared_.options.idle;
    if (shared_.draining) return close();
    if (buffer_.size() > 0) parse();
  }

  // Reads on while an answer is made, so that a client's leaving is noticed.
  void read() {
    if (closed_ || reading_ || buffer_.size() >= buffer_.max_size()) return;
    reading_ = true;
    const size_t room = std::min(kRead, buffer_.max_size() - buffer_.size());
    stream_.async_read_some(buffer_.prepare(room),
                            [self = this->shared_from_this()](error_code error, size_t count) {
                              self->reading_ = false;
                              if (error || self->closed_) return self->close();
                              self->buffer_.commit(count);
                              if (self->discarding_)
                                self->buffer_.clear();
                              else
                                self->parse();
                              self->read();
                            });
  }

  void parse() {
    while (!closed_ && !exchange_open_ && !discarding_ && buffer_.size() > 0) {
      if (!busy_with_request_) {
        busy_with_request_ = true;
        deadline_ = Clock::now() + shared_.options.sending;
      }
      error_code error;
      const size_t used = parser_->put(buffer_.data(), error);
      buffer_.consume(used);
      if (error == http::error::need_more) error = {};
      if (error) return refuse_parsing(error);
      if (!gated_ && parser_->is_header_done()) {
        gated_ = true;
        if (!admit()) return;
      }
      if (memory_ && !memory_->grow(parser_->get().body().size(), shared_.options.max_bodies))
        return refuse(503, "too many large requests at a time; try again later");
      if (parser_->is_done()) return answer();
      if (used == 0) return;
    }
  }

  // Whether the body is wanted.
  bool admit() {
    const auto& head = parser_->get();
    if (const auto [status, why] = objection(head); status != 0) {
      refuse(status, why);
      return false;
    }
    if (auto refusal = shared_.gate(request_of(head, peer_))) {
      refusal->headers.emplace_back("Connection", "close");
      respond(std::move(*refusal));
      return false;
    }
    memory_ = std::make_shared<BodyMemory>(shared_.bodies);
    if (head[http::field::expect] == "100-continue" && !parser_->is_done()) {
      out_.emplace_back("HTTP/1.1 100 Continue\r\n\r\n");
      write();
    }
    return true;
  }

  std::shared_ptr<Exchange> open_exchange() {
    const auto& head = parser_->get();
    if (!std::exchange(exchange_open_, true)) ++shared_.answering;
    deadline_ = Clock::time_point::max();
    std::string id(head["x-request-id"]);
    const bool fine = !id.empty() && id.size() <= 64 && std::all_of(id.begin(), id.end(), [](char c) {
      return c > ' ' && c < 127 && c != '"';
    });
    if (!fine) id = shared_.own_id + std::to_string(++shared_.requests);
    auto headers = shared_.options.headers;
    headers.emplace_back("X-Request-Id", id);
    HttpLog log{peer_, std::string(head.method_string()), std::string(head.target()), id};
    log.path.resize(std::min(log.path.find('?'), log.path.size()));
    const auto over = [&shared = shared_, log, begin = Clock::now()](int status) mutable {
      log.status = status;
      log.ms = std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
      if (shared.options.log) shared.options.log(log);
    };
    auto exchange = std::make_shared<Exchange>(io_, this->weak_from_this(), std::move(headers),
                                               head.keep_alive() && !shared_.draining, head.version() < 11,
                                               head.method() == http::verb::head, over);
    exchange_ = exchange;
    return exchange;
  }

  void answer() {
    HttpRequest request = request_of(parser_->get(), peer_);
    request.body = std::move(parser_->get().body());
    request.memory = std::move(memory_);
    shared_.handler(std::move(request), open_exchange());
  }

  void refuse_parsing(error_code error) {
    if (error == http::error::header_limit)
      return refuse(431, concat("the request's head is longer than ", shared_.options.max_header, " bytes"));
    if (error == http::error::body_limit)
      return refuse(413, concat("the request's body is longer than ", shared_.options.max_body, " bytes"));
    refuse(400, "this is not HTTP: " + error.message());
  }
  void refuse(int status, const std::string& text) {
    HttpResponse response{
        status, "application/json", shared_.error_body(status, text), {{"Connection", "close"}}};
    if (status == 503) response.headers.emplace_back("Retry-After", "1");
    respond(std::move(response));
  }
  void respond(HttpResponse response) { open_exchange()->send(std::move(response)); }

  void write() {
    if (closed_ || writing_) return;
    if (out_.empty()) {
      if (last_) written();
      return;
    }
    writing_ = true;
    if (exchange_open_) deadline_ = Clock::now() + shared_.options.reading;
    asio::async_write(stream_, asio::buffer(out_.front()),
                      [self = this->shared_from_this()](error_code error, size_t) {
                        self->writing_ = false;
                        if (error || self->closed_) return self->close();
                        self->out_.pop_front();
                        if (self->exchange_open_) self->deadline_ = Clock::time_point::max();
                        self->write();
                      });
  }

  // The whole answer has gone out.
  void written() {
    const bool keep = *last_;
    exchange_.reset();
    --shared_.answering;
    exchange_open_ = false;
    if (!keep) return finish();
    await_request();
    read();
  }

  // The client may still be sending what nobody wants: a closed socket would make it miss the answer.
  void finish() {
    last_.reset();
    discarding_ = true;
    buffer_.clear();
    deadline_ = Clock::now() + std::chrono::seconds(2);
    error_code ignored;
    stream_.lowest_layer().shutdown(tcp::socket::shutdown_send, ignored);
    read();
  }

  void gone() {
    if (const auto exchange = exchange_.lock()) exchange->tell_gone();
    exchange_.reset();
  }

  asio::io_context& io_;
  Stream stream_;
  Shared& shared_;
  const std::string peer_;
  beast::flat_buffer buffer_;
  std::optional<http::request_parser<http::string_body>> parser_;
  std::shared_ptr<BodyMemory> memory_;
  std::weak_ptr<Exchange> exchange_;
  std::deque<std::string> out_;
  Clock::time_point deadline_;
  bool gated_ = false, busy_with_request_ = false, exchange_open_ = false, said_anything_ = false;
  std::optional<bool> last_;  // whether the connection is kept; the answer has ended
  bool reading_ = false, writing_ = false, discarding_ = false, closed_ = false;
};

}  // namespace glimpse::serve
