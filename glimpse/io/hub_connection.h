#pragma once

#include "glimpse/io/hub.h"
#include "glimpse/io/web.h"

namespace glimpse {

/// How often a request is made again, and after which pauses.
class Patience {
 public:
  Patience(const HubOptions& options, const FetchWatch& watch, const std::stop_token& stop)
      : options_(options), watch_(watch), stop_(stop) {}

  /// Waits before another try of what was answered like this; false if that would not help or was tried often
  /// enough. Error of the kind `cancelled` when a stop is requested.
  bool again(const WebReply& reply, const std::string& what);
  /// Something came: the count begins anew.
  void renew() { tries_ = 0; }

 private:
  const HubOptions& options_;
  const FetchWatch& watch_;
  const std::stop_token& stop_;
  int tries_ = 0;
};

/// A connection to the hub and to where it redirects; for one thread at a time.
class HubConnection {
 public:
  HubConnection(const HubOptions& options, const FetchWatch& watch, const std::stop_token& stop)
      : options_(options), watch_(watch), stop_(stop), client_(options.agent) {}

  /// One try. The token goes to the hub's own host only. Redirects are followed; with `at_home` only those to
  /// another path, and one that leads elsewhere is the answer: what it says of the file is in its headers.
  WebReply once(WebRequest request, bool at_home);
  /// The same until there is an answer, or patience ends.
  WebReply get(const WebRequest& request, bool at_home, const std::string& what);

  const HubOptions& options() const { return options_; }
  const FetchWatch& watch() const { return watch_; }
  const std::stop_token& stop() const { return stop_; }

 private:
  const HubOptions& options_;
  const FetchWatch& watch_;
  const std::stop_token& stop_;
  WebClient client_;
};

/// Error of the kind `cancelled` when a stop is requested.
void check_goes_on(const std::stop_token& stop);
/// What to do about an answer that is not what was asked for.
[[noreturn]] void refuse(const HubOptions& options, const HubId& id, const std::string& file,
                         const WebReply& reply);
/// Text of a server as messages show it: short, and nothing that a terminal would obey.
std::string shown(const std::string& text);

}  // namespace glimpse
