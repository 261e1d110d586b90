#include "glimpse/serve/http.h"

#include <sys/resource.h>

#include <boost/algorithm/string/case_conv.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <set>

#include "glimpse/serve/http_session.h"

namespace glimpse::serve {

HttpRequest request_of(const http::request<http::string_body>& from, const std::string& peer) {
  HttpRequest to;
  to.method = std::string(from.method_string());
  std::string target(from.target());
  // The absolute form, as proxies send it.
  if (target.starts_with("http://") || target.starts_with("https://")) {
    const size_t path = target.find('/', target.find("//") + 2);
    target = path == target.npos ? "/" : target.substr(path);
  }
  to.path = target.substr(0, target.find('?'));
  for (const auto& field : from) {
    std::string& value = to.headers[boost::algorithm::to_lower_copy(std::string(field.name_string()))];
    if (!value.empty()) value += ", ";
    value += std::string(field.value());
  }
  to.peer = peer;
  return to;
}

std::pair<int, std::string> objection(const http::request<http::string_body>& head) {
  if (head.version() >= 11 && head.count(http::field::host) != 1)
    return {400, "a request has one Host header"};
  if (head.count(http::field::transfer_encoding) == 0) return {0, ""};
  if (head.version() < 11) return {400, "HTTP/1.0 has no Transfer-Encoding"};
  if (head.count(http::field::content_length) > 0)
    return {400, "a body has either a Content-Length or a Transfer-Encoding"};
  if (head.count(http::field::transfer_encoding) > 1 ||
      !beast::iequals(head[http::field::transfer_encoding], "chunked"))
    return {501, "the only Transfer-Encoding that is understood is chunked"};
  return {0, ""};
}

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
  impl_->shared.options = std::move(options);
  impl_->shared.gate = std::move(gate);
  impl_->shared.handler = std::move(handler);
  impl_->shared.error_body = std::move(error_body);
  // Every connection is a file; by default a program may have 1,024.
  rlimit files{};
  if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
  }
  impl_->listen();
}
HttpServer::~HttpServer() = default;

uint16_t HttpServer::port() const {
  return impl_->port;
}
size_t HttpServer::connections() const {
  return impl_->count;
}
size_t HttpServer::answering() const {
  return impl_->shared.answering;
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
