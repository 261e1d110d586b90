#include "glimpse/serve/http.h"

#include <algorithm>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <deque>
#include <mutex>
#include <set>
#include <sstream>

#include "glimpse/base/check.h"

namespace glimpse::serve {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::ip::tcp;
using Clock = std::chrono::steady_clock;
using boost::system::error_code;

std::string HttpRequest::header(const std::string& name) const {
  const auto found = headers.find(name);
  return found == headers.end() ? "" : found->second;
}

std::string reason_of(int status) {
  return std::string(http::obsolete_reason(static_cast<http::status>(status)));
}

namespace {

std::string lower(std::string text) {
  for (char& c : text)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return text;
}

// What a session needs to know of its server.
struct Shared {
  HttpOptions options;
  HttpServer::Gate gate;
  HttpServer::Handler handler;
  std::function<std::string(int, const std::string&)> error_body;
  std::shared_ptr<std::atomic<size_t>> bodies = std::make_shared<std::atomic<size_t>>(0);
  bool draining = false;
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

// One connection, as the rest sees it. All calls come on the server's thread.
class Connection {
 public:
  virtual ~Connection() = default;
  // `last`: whether the connection is kept behind these bytes, which end the answer; nothing: more will come.
  virtual void put(std::string bytes, std::optional<bool> last) = 0;
  virtual void abandoned() = 0;
  virtual void sweep(Clock::time_point now) = 0;
  virtual void drain() = 0;
  virtual void close() = 0;
};

// One request's way back. It outlives its connection if somebody keeps it.
class Exchange final : public Reply, public std::enable_shared_from_this<Exchange> {
 public:
  Exchange(asio::io_context& io, std::weak_ptr<Connection> connection, const Shared& shared, bool keep_alive,
           bool old, bool head_only)
      : io_(io),
        connection_(std::move(connection)),
        headers_(shared.options.headers),
        keep_alive_(keep_alive),
        old_(old),
        head_only_(head_only) {}
  ~Exchange() override {
    if (!ended_)
      asio::post(io_, [connection = connection_] {
        if (const auto to = connection.lock()) to->abandoned();
      });
  }

  void send(HttpResponse response) override {
    std::string bytes = head(response, "Content-Length: " + std::to_string(response.body.size()));
    if (!head_only_) bytes += response.body;
    ended_ = true;
    put(std::move(bytes), true);
  }
  void begin(HttpResponse response) override {
    put(head(response, old_ ? "" : "Transfer-Encoding: chunked"), false);
  }
  void write(std::string piece) override {
    if (!piece.empty()) put(chunk(piece), false);
  }
  void end() override {
    ended_ = true;
    put(old_ || head_only_ ? "" : "0\r\n\r\n", true);
  }
  void on_gone(std::function<void()> call) override {
    {
      const std::lock_guard lock(mutex_);
      if (!gone_) {
        on_gone_.push_back(std::move(call));
        return;
      }
    }
    call();
  }
  void tell_gone() {
    std::vector<std::function<void()>> calls;
    {
      const std::lock_guard lock(mutex_);
      gone_ = true;
      calls.swap(on_gone_);
    }
    for (const auto& call : calls) call();
  }
  // After the answer nobody waits for the client any more.
  void forget() {
    const std::lock_guard lock(mutex_);
    on_gone_.clear();
  }

 private:
  std::string head(const HttpResponse& response, const std::string& framing) {
    // Without chunks only the connection's end can end the body.
    if (framing.empty()) keep_alive_ = false;
    std::ostringstream out;
    out << "HTTP/1.1 " << response.status << " " << reason_of(response.status) << "\r\nServer: glimpse\r\n";
    if (!response.type.empty()) out << "Content-Type: " << response.type << "\r\n";
    if (!framing.empty()) out << framing << "\r\n";
    for (const auto* list : {&headers_, &response.headers})
      for (const auto& [name, value] : *list) {
        if (name == "Connection" && value == "close")
          keep_alive_ = false;
        else
          out << name << ": " << value << "\r\n";
      }
    out << "Connection: " << (keep_alive_ ? "keep-alive" : "close") << "\r\n\r\n";
    return out.str();
  }
  std::string chunk(const std::string& piece) const {
    if (head_only_) return "";
    if (old_) return piece;
    std::ostringstream out;
    out << std::hex << piece.size() << "\r\n" << piece << "\r\n";
    return out.str();
  }
  void put(std::string bytes, bool last) {
    asio::post(
        io_, [connection = connection_, self = shared_from_this(), bytes = std::move(bytes), last]() mutable {
          if (last) self->forget();
          if (const auto to = connection.lock())
            to->put(std::move(bytes), last ? std::optional<bool>(self->keep_alive_) : std::nullopt);
        });
  }

  asio::io_context& io_;
  const std::weak_ptr<Connection> connection_;
  const std::vector<std::pair<std::string, std::string>> headers_;
  std::atomic<bool> keep_alive_;
  const bool old_, head_only_;
  std::atomic<bool> ended_ = false;
  std::mutex mutex_;
  bool gone_ = false;
  std::vector<std::function<void()>> on_gone_;
};

HttpRequest request_of(const http::request<http::string_body>& from, const std::string& peer) {
  HttpRequest to;
  to.method = std::string(from.method_string());
  const std::string target(from.target());
  const size_t mark = target.find('?');
  to.path = target.substr(0, mark);
  if (mark != target.npos) to.query = target.substr(mark + 1);
  for (const auto& field : from) {
    std::string& value = to.headers[lower(std::string(field.name_string()))];
    if (!value.empty()) value += ", ";
    value += std::string(field.value());
  }
  to.peer = peer;
  return to;
}

void handshake(tcp::socket&, std::function<void(error_code)> then) {
  then({});
}
void handshake(asio::ssl::stream<tcp::socket>& stream, std::function<void(error_code)> then) {
  stream.async_handshake(asio::ssl::stream_base::server, std::move(then));
}

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
    error_code ignored;
    stream_.lowest_layer().shutdown(tcp::socket::shutdown_both, ignored);
    stream_.lowest_layer().close(ignored);
    gone();
  }
  bool closed() const { return closed_; }

 private:
  static constexpr size_t kRead = 64 << 10;

  void await_request() {
    busy_with_request_ = exchange_open_ = said_anything_ = false;
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
    exchange_open_ = true;
    deadline_ = Clock::time_point::max();
    auto exchange = std::make_shared<Exchange>(io_, this->weak_from_this(), shared_,
                                               head.keep_alive() && !shared_.draining, head.version() < 11,
                                               head.method() == http::verb::head);
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
    if (!keep) return finish();
    await_request();
    read();
  }

  // The client may still be sending what nobody wants: a closed socket would make it miss the answer.
  void finish() {
    exchange_open_ = false;
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

}  // namespace

struct HttpServer::Impl {
  Shared shared;
  asio::io_context io{1};
  tcp::acceptor acceptor{io};
  asio::steady_timer sweeper{io};
  std::optional<asio::ssl::context> tls;
  std::set<std::shared_ptr<Connection>> sessions;
  std::atomic<size_t> count = 0;
  std::atomic<uint16_t> port = 0;
  bool accepting = false;

  void listen() {
    const HttpOptions& options = shared.options;
    try {
      tcp::resolver resolver(io);
      const auto found = resolver.resolve(options.host, std::to_string(options.port),
                                          tcp::resolver::passive | tcp::resolver::numeric_service);
      const tcp::endpoint endpoint = found.begin()->endpoint();
      acceptor.open(endpoint.protocol());
      acceptor.set_option(tcp::acceptor::reuse_address(true));
      acceptor.bind(endpoint);
      acceptor.listen(1024);
      port = acceptor.local_endpoint().port();
    } catch (const boost::system::system_error& error) {
      fail("cannot listen on ", options.host, ":", options.port, ": ", error.code().message(),
           error.code() == boost::system::errc::address_in_use
               ? " (another program uses it; --port 0 finds a free one)"
               : "");
    }
    if (options.certificate.empty() && options.key.empty()) return;
    check(!options.certificate.empty() && !options.key.empty(),
          "TLS needs a certificate and its key; one of the two is missing");
    try {
      tls.emplace(asio::ssl::context::tls_server);
      tls->set_options(asio::ssl::context::default_workarounds | asio::ssl::context::no_sslv2 |
                       asio::ssl::context::no_sslv3 | asio::ssl::context::no_tlsv1 |
                       asio::ssl::context::no_tlsv1_1);
      tls->use_certificate_chain_file(options.certificate);
      tls->use_private_key_file(options.key, asio::ssl::context::pem);
    } catch (const boost::system::system_error& error) {
      fail("TLS: ", options.certificate, " and ", options.key, ": ", error.code().message());
    }
  }

  void accept() {
    if (accepting || !acceptor.is_open() || sessions.size() >= shared.options.max_connections) return;
    accepting = true;
    acceptor.async_accept([this](error_code error, tcp::socket socket) {
      accepting = false;
      if (!acceptor.is_open()) return;
      if (!error) {
        error_code none;
        const auto peer = socket.remote_endpoint(none);
        socket.set_option(tcp::no_delay(true), none);
        if (!none) open(std::move(socket), peer.address().to_string());
      } else if (error == boost::system::errc::too_many_files_open) {
        return;  // the sweeper tries again
      }
      accept();
    });
  }

  void open(tcp::socket socket, const std::string& peer) {
    if (tls)
      start<asio::ssl::stream<tcp::socket>>({std::move(socket), *tls}, peer);
    else
      start<tcp::socket>(std::move(socket), peer);
  }
  template <class Stream>
  void start(Stream stream, const std::string& peer) {
    auto session = std::make_shared<Session<Stream>>(io, std::move(stream), shared, peer);
    sessions.insert(session);
    count = sessions.size();
    session->start();
  }

  // Ends what takes too long, and forgets what has ended.
  void sweep() {
    sweeper.expires_after(std::chrono::milliseconds(200));
    sweeper.async_wait([this](error_code error) {
      if (error) return;
      const auto now = Clock::now();
      for (auto it = sessions.begin(); it != sessions.end();) {
        (*it)->sweep(now);
        it = it->use_count() == 1 ? sessions.erase(it) : std::next(it);
      }
      count = sessions.size();
      accept();
      sweep();
    });
  }
};

HttpServer::HttpServer(HttpOptions options, Gate gate, Handler handler,
                       std::function<std::string(int, const std::string&)> error_body)
    : impl_(std::make_unique<Impl>()) {
  impl_->shared = {std::move(options), std::move(gate), std::move(handler), std::move(error_body)};
  impl_->listen();
}
HttpServer::~HttpServer() = default;

uint16_t HttpServer::port() const {
  return impl_->port;
}
size_t HttpServer::connections() const {
  return impl_->count;
}

void HttpServer::run() {
  impl_->accept();
  impl_->sweep();
  impl_->io.run();
}

void HttpServer::drain() {
  asio::post(impl_->io, [this] {
    error_code ignored;
    impl_->acceptor.close(ignored);
    impl_->shared.draining = true;
    for (const auto& session : impl_->sessions) session->drain();
  });
}

void HttpServer::stop() {
  asio::post(impl_->io, [this] {
    error_code ignored;
    impl_->acceptor.close(ignored);
    for (const auto& session : impl_->sessions) session->close();
    impl_->io.stop();
  });
}

}  // namespace glimpse::serve
