#include "glimpse/serve/fetcher.h"

#include <curl/curl.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <boost/algorithm/string/case_conv.hpp>
#include <cstring>
#include <deque>
#include <mutex>
#include <thread>

#include "glimpse/base/check.h"

namespace glimpse::serve {

void refuse_medium(const MediumSource& source, const std::string& text, std::string code) {
  if (const size_t at = code.find("image"); source.video && at != code.npos) code.replace(at, 5, "video");
  throw ApiError(400, "invalid_request_error", text, code);
}

void refuse_size(const MediumSource& source, size_t max_bytes) {
  refuse_medium(source, concat("a ", source.noun(), "'s file may have at most ", max_bytes, " bytes"),
                "image_too_large");
}

namespace {

using Clock = std::chrono::steady_clock;

// Which addresses a server that fetches for strangers may connect to.
enum class AddressKind {
  open,         // of the internet
  private_net,  // loopback, private and shared networks
  never,        // link-local (where clouds keep credentials), multicast, reserved, anything else
};

struct Block {
  uint32_t address;
  int bits;
  AddressKind kind;
};
// IANA's special-purpose registry, as far as its blocks are not reachable from everywhere.
constexpr Block kBlocks[] = {
    {0x00000000, 8, AddressKind::never},         // 0.0.0.0: this host
    {0x0a000000, 8, AddressKind::private_net},   // 10/8
    {0x64400000, 10, AddressKind::private_net},  // 100.64.0.0: shared by carriers
    {0x7f000000, 8, AddressKind::private_net},   // 127.0.0.0: loopback
    {0xa9fe0000, 16, AddressKind::never},        // 169.254.0.0: link-local
    {0xac100000, 12, AddressKind::private_net},  // 172.16/12
    {0xc0000000, 24, AddressKind::never},        // 192.0.0.0: protocols
    {0xc0000200, 24, AddressKind::never},        // 192.0.2.0: examples
    {0xc0586300, 24, AddressKind::never},        // 192.88.99.0: 6to4 relays
    {0xc0a80000, 16, AddressKind::private_net},  // 192.168/16
    {0xc6120000, 15, AddressKind::never},        // 198.18.0.0: benchmarks
    {0xc6336400, 24, AddressKind::never},        // 198.51.100.0: examples
    {0xcb007100, 24, AddressKind::never},        // 203.0.113.0: examples
    {0xe0000000, 3, AddressKind::never},         // multicast, reserved, broadcast
};

AddressKind kind_of_v4(uint32_t address) {
  for (const Block& block : kBlocks)
    if ((address ^ block.address) >> (32 - block.bits) == 0) return block.kind;
  return AddressKind::open;
}

AddressKind kind_of_v6(const std::array<uint8_t, 16>& address) {
  const auto begins = [&](std::initializer_list<uint8_t> prefix) {
    return std::equal(prefix.begin(), prefix.end(), address.begin());
  };
  const uint32_t last =
      uint32_t{address[12]} << 24 | uint32_t{address[13]} << 16 | uint32_t{address[14]} << 8 | address[15];
  if (begins({0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff}) ||   // ::ffff:0:0/96, mapped
      begins({0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0}))  // 64:ff9b::/96, NAT64
    return kind_of_v4(last);
  if (begins({0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}) && last == 1) return AddressKind::private_net;  // ::1
  if ((address[0] & 0xfe) == 0xfc) return AddressKind::private_net;                                // fc00::/7
  const bool global = (address[0] & 0xe0) == 0x20;                                                 // 2000::/3
  const bool special = (begins({0x20, 0x01}) && address[2] < 2) ||  // 2001::/23: protocols, Teredo
                       begins({0x20, 0x01, 0x0d, 0xb8}) ||          // 2001:db8::/32, 3fff::/20: examples
                       (begins({0x3f, 0xff}) && address[2] < 0x10) ||
                       begins({0x20, 0x02});  // 2002::/16: 6to4
  return global && !special ? AddressKind::open : AddressKind::never;
}

// An IPv6 address that stands for an IPv4 one (mapped, NAT64) is of that one's kind.
AddressKind address_kind(const sockaddr& address) {
  if (address.sa_family == AF_INET) {
    sockaddr_in v4{};
    std::memcpy(&v4, &address, sizeof v4);
    return kind_of_v4(ntohl(v4.sin_addr.s_addr));
  }
  if (address.sa_family != AF_INET6) return AddressKind::never;
  sockaddr_in6 v6{};
  std::memcpy(&v6, &address, sizeof v6);
  std::array<uint8_t, 16> bytes{};
  std::memcpy(bytes.data(), v6.sin6_addr.s6_addr, bytes.size());
  return kind_of_v6(bytes);
}

struct Target {
  std::string scheme, host, port, url;
};

// Only the parts that a picture's URL has; the URL is put together again from what was understood.
Target parse_url(const MediumSource& source, const std::string& url) {
  const std::string whose = source.video ? "a video's url" : "an image's url";
  const std::unique_ptr<CURLU, decltype(&curl_url_cleanup)> parts(curl_url(), curl_url_cleanup);
  if (url.size() > 8192) refuse_medium(source, whose + " may have at most 8192 characters");
  if (curl_url_set(parts.get(), CURLUPART_URL, url.c_str(), 0) != CURLUE_OK)
    refuse_medium(source, "'" + url.substr(0, 200) + "' is no URL");
  const auto part = [&](CURLUPart which, unsigned flags = 0) {
    char* text = nullptr;
    std::string out;
    if (curl_url_get(parts.get(), which, &text, flags) == CURLUE_OK) out = text;
    curl_free(text);
    return out;
  };
  if (!part(CURLUPART_USER).empty() || !part(CURLUPART_PASSWORD).empty())
    refuse_medium(source, whose + " may have no user and no password", "url_not_allowed");
  curl_url_set(parts.get(), CURLUPART_FRAGMENT, nullptr, 0);
  Target target{part(CURLUPART_SCHEME), part(CURLUPART_HOST), part(CURLUPART_PORT, CURLU_DEFAULT_PORT),
                part(CURLUPART_URL)};
  boost::algorithm::to_lower(target.host);
  if (target.host.ends_with('.')) target.host.pop_back();
  if (target.scheme != "http" && target.scheme != "https")
    refuse_medium(source, whose + " begins with http://, https://, data: or file://", "url_not_allowed");
  return target;
}

bool matches(const Target& target, std::string domain) {
  boost::algorithm::to_lower(domain);
  const size_t colon = domain.find(':', domain.rfind(']') == domain.npos ? 0 : domain.rfind(']'));
  const std::string host = domain.substr(0, colon);
  if (colon == domain.npos ? target.port != "80" && target.port != "443"
                           : target.port != domain.substr(colon + 1))
    return false;
  if (host == "*" || host == target.host) return true;
  return host.starts_with("*.") && target.host.ends_with(host.substr(1));
}

// One file that is fetched, through as many redirects as it takes.
struct Transfer {
  const FetchOptions& options;
  const MediumSource source;  // without its URL
  Target target;
  std::stop_token stop;
  Fetcher::Then then;
  Clock::time_point deadline;
  std::string bytes;
  int redirects = 0;
  bool closed_address = false, too_large = false;
  std::unique_ptr<CURL, decltype(&curl_easy_cleanup)> easy{nullptr, curl_easy_cleanup};

  Transfer(const FetchOptions& of, const MediumSource& from, std::stop_token token, Fetcher::Then call)
      : options(of),
        source{{}, {}, from.video},
        target(parse_url(from, from.url)),
        stop(std::move(token)),
        then(std::move(call)) {}
  size_t max_bytes() const { return options.max_bytes_of(source); }

  void allow() const {
    const auto& all = options.domains;
    if (std::none_of(all.begin(), all.end(), [&](const auto& domain) { return matches(target, domain); }))
      refuse_medium(source,
                    "this server fetches no " + source.noun() + "s" +
                        (all.empty() ? "; send it as data: URL" : " from " + target.host + ":" + target.port),
                    "url_not_allowed");
  }

  static size_t on_bytes(const char* data, size_t, size_t count, void* self) {
    auto& transfer = *static_cast<Transfer*>(self);
    transfer.too_large = transfer.bytes.size() + count > transfer.max_bytes();
    if (transfer.too_large) return 0;
    transfer.bytes.append(data, count);
    return count;
  }
  static curl_socket_t on_socket(void* self, curlsocktype, curl_sockaddr* address) {
    auto& transfer = *static_cast<Transfer*>(self);
    const AddressKind kind = address_kind(address->addr);
    if (kind == AddressKind::never ||
        (kind == AddressKind::private_net && !transfer.options.private_addresses)) {
      transfer.closed_address = true;
      return CURL_SOCKET_BAD;
    }
    return socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
  }

  void prepare() {
    bytes.clear();
    closed_address = too_large = false;
    easy.reset(curl_easy_init());
    check(easy != nullptr, "out of memory");
    CURL* const curl = easy.get();
    curl_easy_setopt(curl, CURLOPT_URL, target.url.c_str());
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(curl, CURLOPT_PROXY, "");  // a proxy would connect to what is not allowed here
    curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 0L);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_USERAGENT, "glimpse");
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_bytes);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, this);
    curl_easy_setopt(curl, CURLOPT_OPENSOCKETFUNCTION, on_socket);
    curl_easy_setopt(curl, CURLOPT_OPENSOCKETDATA, this);
    curl_easy_setopt(curl, CURLOPT_PRIVATE, this);
  }

  void limit_time() {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
    curl_easy_setopt(easy.get(), CURLOPT_TIMEOUT_MS, static_cast<long>(std::max<int64_t>(left, 1)));
  }

  // Whether it is over; else another URL is to be asked. Errors: ApiError.
  bool finish(CURLcode result) {
    const std::string host = target.host, fetching = "fetching the " + source.noun() + " from " + host + ": ";
    if (closed_address && result != CURLE_OK)
      refuse_medium(source, host + " is at an address that this server does not connect to",
                    "url_not_allowed");
    if (too_large) refuse_size(source, max_bytes());
    if (result != CURLE_OK)
      refuse_medium(source, fetching + curl_easy_strerror(result), "image_fetch_failed");
    long status = 0;
    char* next = nullptr;
    curl_easy_getinfo(easy.get(), CURLINFO_RESPONSE_CODE, &status);
    curl_easy_getinfo(easy.get(), CURLINFO_REDIRECT_URL, &next);
    if (next && status >= 300 && status < 400) {
      if (++redirects > 3) refuse_medium(source, fetching + "too many redirects", "image_fetch_failed");
      Target to = parse_url(source, next);
      if (target.scheme == "https" && to.scheme != "https")
        refuse_medium(source, fetching + "a redirect leads from https to http", "url_not_allowed");
      target = std::move(to);
      allow();
      return false;
    }
    if (status != 200)
      refuse_medium(source, concat("fetching the ", source.noun(), ": ", host, " answered ", status),
                    "image_fetch_failed");
    return true;
  }
};

}  // namespace

struct Fetcher::Impl {
  static constexpr size_t kAtOnce = 16;

  const FetchOptions options;
  const std::shared_ptr<std::atomic<size_t>> held = std::make_shared<std::atomic<size_t>>(0);
  CURLM* const multi;
  std::mutex mutex;
  std::deque<std::unique_ptr<Transfer>> queue;
  bool ended = false;
  std::vector<std::unique_ptr<Transfer>> running;  // of the thread alone
  std::jthread thread;

  explicit Impl(FetchOptions given)
      : options(std::move(given)), multi((curl_global_init(CURL_GLOBAL_ALL), curl_multi_init())) {
    check(multi != nullptr, "out of memory");
    if (!options.domains.empty()) thread = std::jthread([this](std::stop_token end) { loop(end); });
  }
  ~Impl() {
    halt();
    curl_multi_cleanup(multi);
  }

  void halt() {
    if (!thread.joinable()) return;
    thread.request_stop();
    curl_multi_wakeup(multi);
    thread.join();
  }

  // Transfers begin as long as their files, were they as large as allowed, have room.
  void begin() {
    const std::lock_guard lock(mutex);
    const auto room = [&] {
      size_t most = *held + queue.front()->max_bytes();
      for (const auto& each : running) most += each->max_bytes();
      return running.empty() || most <= options.max_held;
    };
    while (!queue.empty() && running.size() < kAtOnce && room()) {
      running.push_back(std::move(queue.front()));
      queue.pop_front();
      running.back()->deadline = Clock::now() + options.timeout;
      running.back()->limit_time();
      curl_multi_add_handle(multi, running.back()->easy.get());
    }
  }

  std::unique_ptr<Transfer> take(Transfer* which) {
    const auto found =
        std::find_if(running.begin(), running.end(), [&](const auto& each) { return each.get() == which; });
    curl_multi_remove_handle(multi, which->easy.get());
    std::unique_ptr<Transfer> out = std::move(*found);
    running.erase(found);
    return out;
  }

  static void failed(const Transfer& transfer, const std::string& text) {
    transfer.then(nullptr, std::make_exception_ptr(ApiError(503, "unavailable_error", text)));
  }

  void done(Transfer* which, CURLcode result) {
    std::unique_ptr<Transfer> transfer = take(which);
    std::exception_ptr error;
    try {
      if (!transfer->finish(result)) {
        transfer->prepare();
        transfer->limit_time();
        curl_multi_add_handle(multi, transfer->easy.get());
        running.push_back(std::move(transfer));
        return;
      }
    } catch (...) {
      error = std::current_exception();
    }
    if (error) return transfer->then(nullptr, error);
    *held += transfer->bytes.size();
    const auto give_back = [all = held](const std::string* bytes) {
      *all -= bytes->size();
      delete bytes;
    };
    transfer->then({new std::string(std::move(transfer->bytes)), give_back}, nullptr);
  }

  void loop(std::stop_token end) {
    while (!end.stop_requested()) {
      begin();
      int open = 0, left = 0;
      curl_multi_perform(multi, &open);
      while (const CURLMsg* message = curl_multi_info_read(multi, &left)) {
        char* which = nullptr;
        const CURLcode result = message->data.result;
        curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &which);
        done(reinterpret_cast<Transfer*>(which), result);
      }
      for (size_t i = 0; i < running.size();)
        if (running[i]->stop.stop_requested())
          failed(*take(running[i].get()), "nobody waits for it");
        else
          ++i;
      bool waiting = false;
      {
        const std::lock_guard lock(mutex);
        waiting = !queue.empty();
      }
      curl_multi_poll(multi, nullptr, 0, waiting || !running.empty() ? 50 : 10000, nullptr);
    }
    std::unique_lock lock(mutex);
    ended = true;
    std::deque<std::unique_ptr<Transfer>> never = std::move(queue);
    lock.unlock();
    while (!running.empty()) never.push_back(take(running.back().get()));
    for (const auto& transfer : never) failed(*transfer, "the server ends");
  }
};

Fetcher::Fetcher(FetchOptions options) : impl_(std::make_unique<Impl>(std::move(options))) {}
Fetcher::~Fetcher() = default;

void Fetcher::get(const MediumSource& source, std::stop_token stop, Then then) {
  auto transfer = std::make_unique<Transfer>(impl_->options, source, std::move(stop), std::move(then));
  transfer->allow();
  transfer->prepare();
  const std::lock_guard lock(impl_->mutex);
  if (impl_->ended) throw ApiError(503, "unavailable_error", "the server ends");
  impl_->queue.push_back(std::move(transfer));
  curl_multi_wakeup(impl_->multi);
}

void Fetcher::stop() {
  impl_->halt();
}

}  // namespace glimpse::serve
