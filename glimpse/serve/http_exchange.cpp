#include "glimpse/serve/http_exchange.h"

#include <boost/asio/post.hpp>
#include <boost/beast/http/status.hpp>
#include <sstream>

namespace glimpse::serve {

std::string HttpRequest::header(const std::string& name) const {
  const auto found = headers.find(name);
  return found == headers.end() ? "" : found->second;
}

std::string reason_of(int status) {
  namespace http = boost::beast::http;
  return std::string(http::obsolete_reason(static_cast<http::status>(status)));
}

Exchange::~Exchange() {
  if (ended_) return;
  boost::asio::post(io_, [connection = connection_] {
    if (const auto to = connection.lock()) to->abandoned();
  });
}

void Exchange::send(HttpResponse response) {
  const bool empty = response.status == 204;  // which says no length
  std::string bytes = head(response, empty ? "" : "Content-Length: " + std::to_string(response.body.size()));
  if (!head_only_) bytes += response.body;
  ended_ = true;
  put(std::move(bytes), true);
}

void Exchange::begin(HttpResponse response) {
  // Without chunks only the connection's end can end the body.
  if (old_) keep_alive_ = false;
  put(head(response, old_ ? "" : "Transfer-Encoding: chunked"), false);
}

void Exchange::write(std::string piece) {
  if (!piece.empty()) put(chunk(piece), false);
}

void Exchange::end() {
  ended_ = true;
  put(old_ || head_only_ ? "" : "0\r\n\r\n", true);
}

void Exchange::on_gone(std::function<void()> call) {
  {
    const std::lock_guard lock(mutex_);
    if (!gone_) {
      on_gone_.push_back(std::move(call));
      return;
    }
  }
  call();
}

void Exchange::tell_gone() {
  std::vector<std::function<void()>> calls;
  {
    const std::lock_guard lock(mutex_);
    gone_ = true;
    calls.swap(on_gone_);
  }
  for (const auto& call : calls) call();
  if (const auto over = std::exchange(over_, nullptr)) over(499);
}

std::string Exchange::head(const HttpResponse& response, const std::string& framing) {
  status_ = response.status;
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

std::string Exchange::chunk(const std::string& piece) const {
  if (head_only_) return "";
  if (old_) return piece;
  std::ostringstream out;
  out << std::hex << piece.size() << "\r\n" << piece << "\r\n";
  return out.str();
}

void Exchange::put(std::string bytes, bool last) {
  boost::asio::post(
      io_, [connection = connection_, self = shared_from_this(), bytes = std::move(bytes), last]() mutable {
        if (last) {  // nobody waits for the client any more
          if (const auto over = std::exchange(self->over_, nullptr)) over(self->status_);
          const std::lock_guard lock(self->mutex_);
          self->on_gone_.clear();
        }
        if (const auto to = connection.lock())
          to->put(std::move(bytes), last ? std::optional<bool>(self->keep_alive_) : std::nullopt);
      });
}

}  // namespace glimpse::serve
