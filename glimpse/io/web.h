#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <stop_token>
#include <string>
#include <vector>

namespace glimpse {

/// One request for a file or what is said of it.
struct WebRequest {
  std::string url;
  bool head = false;                      ///< what the server says of it, only
  std::vector<std::string> headers = {};  ///< "Name: value"
  uint64_t first_byte = 0;                ///< from here on
  double stall_s = 10;                    ///< without data for so long it is given up
  size_t largest_body = size_t{1} << 20;
  /// Takes the body of an answer of status 200 or 206, of which the rest is known when it is first called;
  /// false ends it. Without it the body is kept in the reply, as those of other answers are.
  std::function<bool(const struct WebReply& reply, const char* data, size_t size)> take = {};
};

/// What a server answered, or why nothing or not all came.
struct WebReply {
  long status = 0;                             ///< 0: no answer
  std::map<std::string, std::string> headers;  ///< names in small letters
  std::string body, problem;
  bool lasting = false;        ///< the problem will be the same at the next try
  bool no_connection = false;  ///< nobody was there
  std::string redirect;        ///< the whole address that a redirect names, or ""
  double retry_after_s = 0;    ///< as the server asks for; 0 if it does not

  const std::string& header(const std::string& name) const;
};

/// A connection that is used again from request to request; for one thread at a time. Redirects are not
/// followed. Proxies are those of the environment, as are certificates to trust in place of the system's: the
/// file that CURL_CA_BUNDLE, REQUESTS_CA_BUNDLE or SSL_CERT_FILE names.
class WebClient {
 public:
  explicit WebClient(std::string agent);
  ~WebClient();
  WebClient(const WebClient&) = delete;
  WebClient& operator=(const WebClient&) = delete;

  /// Waits for the answer, or until a stop is requested, which it notices within a second. Never throws for
  /// what the network does; what `take` throws it throws.
  WebReply get(const WebRequest& request, const std::stop_token& stop);

 private:
  struct Handle;
  std::unique_ptr<Handle> handle_;
  std::string agent_, certificates_;
};

/// Scheme, host and port of an address, in one spelling: who is trusted with a token. "" for what is no
/// address with http or https.
std::string web_origin(const std::string& url);
/// Text as a part of a path in an address.
std::string web_escaped(const std::string& text);

}  // namespace glimpse
