#include "glimpse/io/web.h"

#include <algorithm>
#include <cmath>
#include <exception>

#include "glimpse/base/ascii.h"
#include "glimpse/base/check.h"
#include "glimpse/base/pipe_signal.h"
#include "glimpse/io/curl.h"
#include "glimpse/io/hub_cache.h"

namespace glimpse {

namespace {

constexpr long kSlowest = 100;  // bytes per second: what is below is a stall
constexpr size_t kMostHeaders = 200, kLongestHeader = 16384;

struct Transfer {
  CURL* curl;
  const WebRequest& request;
  const std::stop_token& stop;
  WebReply reply;
  bool too_large = false;
  std::exception_ptr thrown = {};  // by the request's take: not through libcurl, which is C
};

size_t take_header(const char* data, size_t size, size_t count, void* user) {
  auto& transfer = *static_cast<Transfer*>(user);
  const std::string line(data, size * count);
  if (line.starts_with("HTTP/")) transfer.reply.headers.clear();  // those before were of an interim answer
  const size_t colon = line.find(':');
  if (colon != line.npos && line.size() < kLongestHeader && transfer.reply.headers.size() < kMostHeaders)
    transfer.reply.headers[lowered(line.substr(0, colon))] = trimmed(line.substr(colon + 1));
  return size * count;
}

size_t take_body(const char* data, size_t size, size_t count, void* user) {
  auto& transfer = *static_cast<Transfer*>(user);
  WebReply& reply = transfer.reply;
  curl_easy_getinfo(transfer.curl, CURLINFO_RESPONSE_CODE, &reply.status);
  const size_t bytes = size * count;
  if (transfer.request.take && (reply.status == 200 || reply.status == 206)) try {
      return transfer.request.take(reply, data, bytes) ? bytes : CURL_WRITEFUNC_ERROR;
    } catch (...) {
      transfer.thrown = std::current_exception();
      return CURL_WRITEFUNC_ERROR;
    }
  transfer.too_large = reply.body.size() + bytes > transfer.request.largest_body;
  if (transfer.too_large) return CURL_WRITEFUNC_ERROR;
  reply.body.append(data, bytes);
  return bytes;
}

int stopped(void* user, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
  return static_cast<const Transfer*>(user)->stop.stop_requested();
}

bool is_lasting(CURLcode code) {
  switch (code) {
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_URL_MALFORMAT:
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_WRITE_ERROR:
      return true;
    default:
      return false;
  }
}

std::string part(CURLU* url, CURLUPart which, unsigned flags = 0) {
  char* text = nullptr;
  if (curl_url_get(url, which, &text, flags) != CURLUE_OK) return "";
  std::string out = text;
  curl_free(text);
  return out;
}

}  // namespace

const std::string& WebReply::header(const std::string& name) const {
  static const std::string none;
  const auto found = headers.find(name);
  return found == headers.end() ? none : found->second;
}

struct WebClient::Handle {
  const Curl curl = start_curl();
};

WebClient::WebClient(std::string agent) : handle_(std::make_unique<Handle>()), agent_(std::move(agent)) {
  for (const char* name : {"CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"})
    if (certificates_.empty()) certificates_ = environment_path(name).string();
}

WebClient::~WebClient() = default;

WebReply WebClient::get(const WebRequest& request, const std::stop_token& stop) {
  CURL* const curl = handle_->curl.get();
  curl_easy_reset(curl);  // the connection stays
  Transfer transfer{curl, request, stop, {}};
  char error[CURL_ERROR_SIZE] = "";
  const auto set = [&](CURLoption option, auto value) { curl_easy_setopt(curl, option, value); };
  curl_slist* list = curl_slist_append(nullptr, "Accept-Encoding: identity");  // sizes are those of the files
  for (const std::string& header : request.headers) list = curl_slist_append(list, header.c_str());
  const auto stall = static_cast<long>(std::ceil(request.stall_s));
  set(CURLOPT_URL, request.url.c_str());
  set(CURLOPT_PROTOCOLS_STR, "http,https");
  set(CURLOPT_USERAGENT, agent_.c_str());
  set(CURLOPT_NOSIGNAL, 1L);
  if (!certificates_.empty()) set(CURLOPT_CAINFO, certificates_.c_str());
  set(CURLOPT_NOBODY, request.head ? 1L : 0L);
  set(CURLOPT_HTTPHEADER, list);
  set(CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
  set(CURLOPT_CONNECTTIMEOUT, std::max(stall, 10L));
  set(CURLOPT_LOW_SPEED_LIMIT, kSlowest);
  set(CURLOPT_LOW_SPEED_TIME, stall);
  if (!request.take) set(CURLOPT_TIMEOUT, 12 * stall);  // for short answers, however they drip
  set(CURLOPT_NOPROGRESS, 0L);
  set(CURLOPT_XFERINFOFUNCTION, stopped);
  set(CURLOPT_XFERINFODATA, &transfer);
  set(CURLOPT_ERRORBUFFER, error);
  set(CURLOPT_HEADERFUNCTION, take_header);
  set(CURLOPT_HEADERDATA, &transfer);
  set(CURLOPT_WRITEFUNCTION, take_body);
  set(CURLOPT_WRITEDATA, &transfer);
  const std::string range = concat(request.first_byte, "-");
  if (request.first_byte > 0) set(CURLOPT_RANGE, range.c_str());
  const NoPipeSignal guard;  // OpenSSL writes without saying that it wants none
  const CURLcode code = curl_easy_perform(curl);
  curl_slist_free_all(list);
  if (transfer.thrown) std::rethrow_exception(transfer.thrown);
  WebReply& reply = transfer.reply;
  curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &reply.status);
  char* redirect = nullptr;
  if (curl_easy_getinfo(curl, CURLINFO_REDIRECT_URL, &redirect) == CURLE_OK && redirect != nullptr)
    reply.redirect = redirect;
  curl_off_t wait = 0;
  if (curl_easy_getinfo(curl, CURLINFO_RETRY_AFTER, &wait) == CURLE_OK)
    reply.retry_after_s = static_cast<double>(wait);
  if (code == CURLE_OK) return std::move(reply);
  reply.problem = transfer.too_large ? concat("the answer is longer than ", request.largest_body, " bytes")
                  : error[0]         ? error
                                     : curl_easy_strerror(code);
  reply.lasting = is_lasting(code);
  reply.no_connection = code == CURLE_COULDNT_CONNECT || code == CURLE_COULDNT_RESOLVE_HOST ||
                        code == CURLE_COULDNT_RESOLVE_PROXY;
  return std::move(reply);
}

std::string web_origin(const std::string& url) {
  const std::unique_ptr<CURLU, decltype(&curl_url_cleanup)> parts(curl_url(), curl_url_cleanup);
  if (curl_url_set(parts.get(), CURLUPART_URL, url.c_str(), 0) != CURLUE_OK) return "";
  const std::string scheme = lowered(part(parts.get(), CURLUPART_SCHEME)),
                    host = lowered(part(parts.get(), CURLUPART_HOST));
  if ((scheme != "http" && scheme != "https") || host.empty()) return "";
  return concat(scheme, "://", host, ":", part(parts.get(), CURLUPART_PORT, CURLU_DEFAULT_PORT));
}

std::string web_escaped(const std::string& text) {
  char* const escaped = curl_easy_escape(nullptr, text.data(), static_cast<int>(text.size()));
  check(escaped != nullptr, "out of memory");
  std::string out = escaped;
  curl_free(escaped);
  return out;
}

}  // namespace glimpse
