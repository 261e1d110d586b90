#pragma once

#include <curl/curl.h>

#include <memory>
#include <mutex>

#include "glimpse/base/check.h"

namespace glimpse {

using Curl = std::unique_ptr<CURL, decltype(&curl_easy_cleanup)>;

/// A handle of libcurl, which is set up once for the process. Error when there is none.
inline Curl start_curl() {
  static std::once_flag once;
  std::call_once(once, [] { curl_global_init(CURL_GLOBAL_DEFAULT); });
  Curl curl(curl_easy_init(), curl_easy_cleanup);
  check(curl != nullptr, "HTTP: libcurl cannot be started");
  return curl;
}

}  // namespace glimpse
