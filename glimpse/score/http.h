#pragma once

#include <map>
#include <memory>
#include <stop_token>
#include <string>

namespace glimpse {

/// What a server said, or why nothing came.
struct HttpReply {
  long status = 0;  ///< 0: no reply
  std::string body, problem;
  double retry_after_s = 0;  ///< as the server asks for; 0 if it does not
};

/// A connection that is used again from request to request; for one thread at a time.
class HttpClient {
 public:
  HttpClient();
  ~HttpClient();
  HttpClient(const HttpClient&) = delete;

  /// Posts JSON to an http or https address and waits for at most `timeout_s`, or until a stop is requested,
  /// which it notices within a second. Redirects are not followed; a reply above 8 MiB is a problem. Never
  /// throws for what the network does.
  HttpReply post(const std::string& url, const std::string& body,
                 const std::map<std::string, std::string>& headers, double timeout_s,
                 const std::stop_token& stop);

 private:
  struct Handle;
  std::unique_ptr<Handle> handle_;
};

}  // namespace glimpse
