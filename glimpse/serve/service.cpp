#include "glimpse/serve/service.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <boost/algorithm/string/predicate.hpp>
#include <ctime>
#include <iomanip>
#include <iostream>
#include <sstream>
#include <thread>

#include "glimpse/base/check.h"
#include "glimpse/base/json_file.h"
#include "glimpse/models/video_settings.h"
#include "glimpse/nn/parallel.h"
#include "glimpse/prune/registry.h"
#include "glimpse/serve/chat.h"
#include "glimpse/serve/embedded.h"

namespace glimpse::serve {

namespace asio = boost::asio;
using nlohmann::json;

namespace {

// What a client sent is never more than one line.
void write_log(const HttpLog& entry) {
  std::string path;
  for (const char c : entry.path.substr(0, 200)) path += c > ' ' && c < 127 ? c : '?';
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  std::ostringstream line;
  line << std::put_time(&utc, "%FT%TZ ") << entry.peer << ' ' << entry.method << ' ' << path << ' '
       << entry.status << ' ' << std::fixed << std::setprecision(1) << entry.ms << " ms " << entry.id << '\n';
  std::cerr << line.str() << std::flush;
}

std::string type_of(int status) {
  return status >= 500 ? status == 503 ? "unavailable_error" : "server_error" : "invalid_request_error";
}

// Whether the text is the key, in a time that does not tell how much of it is right.
bool same_key(const std::string& a, const std::string& b) {
  std::array<unsigned char, SHA256_DIGEST_LENGTH> x{}, y{};
  SHA256(reinterpret_cast<const unsigned char*>(a.data()), a.size(), x.data());
  SHA256(reinterpret_cast<const unsigned char*>(b.data()), b.size(), y.data());
  return CRYPTO_memcmp(x.data(), y.data(), x.size()) == 0;
}

}  // namespace

struct Service::Impl : ServiceState {
  explicit Impl(ServeOptions given);
  std::optional<HttpResponse> gate(const HttpRequest& head) const;
  void handle(HttpRequest request, std::shared_ptr<Reply> reply);
  void in_worker(std::shared_ptr<Reply> reply, std::function<void()> run);
  std::vector<std::pair<std::string, double>> gauges() const;
  json model(const std::string& id) const {
    return {{"id", id}, {"object", "model"}, {"created", begun}, {"owned_by", "glimpse"}};
  }
  json models() const;
  void send_model(const std::string& path, Reply& reply) const;
  json props() const;
  void serve(std::stop_token stop);

  const ServeOptions options;
  const std::time_t begun = std::time(nullptr);
  std::atomic<size_t> reading = 0;  // requests that workers have not submitted yet
  std::atomic<bool> ready = false, draining = false;
  std::unique_ptr<HttpServer> http;
};

Service::Impl::Impl(ServeOptions given) : ServiceState(given.media, given.name), options(std::move(given)) {
  served.name = options.name;
  served.presets = options.presets;
  served.max_images = options.max_images;
  served.max_videos = options.max_videos;
  served.max_frames = options.max_frames;
  served.max_choices = std::min(served.max_choices, options.scheduler.max_sequences);
  served.max_new_tokens = options.max_new_tokens;
  HttpOptions http_options = options.http;
  if (!options.cors.empty()) {
    http_options.headers.emplace_back("Access-Control-Allow-Origin", options.cors);
    if (options.cors != "*") http_options.headers.emplace_back("Vary", "Origin");
  }
  if (options.log) http_options.log = write_log;
  http = std::make_unique<HttpServer>(
      http_options, [this](const HttpRequest& head) { return gate(head); },
      [this](HttpRequest request, std::shared_ptr<Reply> reply) {
        handle(std::move(request), std::move(reply));
      },
      [](int status, const std::string& text) {
        return json_text(error_json({status, type_of(status), text}));
      });
}

namespace {

struct Route {
  const char *method, *path;  // one that ends with * stands for all that begin so
  bool open, needs_model;     // without a key; answered once the model is there
};
constexpr Route kRoutes[] = {
    {"GET", "/", true, false},
    {"GET", "/examples/*", true, false},
    {"GET", "/openapi.json", true, false},
    {"GET", "/health", true, true},
    {"GET", "/v1/health", true, true},
    {"GET", "/metrics", false, true},
    {"GET", "/props", false, true},
    {"GET", "/v1/models", false, true},
    {"GET", "/v1/models/*", false, true},
    {"POST", "/v1/chat/completions", false, true},
    {"POST", "/v1/responses", false, true},
    {"POST", "/v1/tokenize", false, true},
    {"POST", "/v1/detokenize", false, true},
};

bool leads_to(const Route& route, const std::string& path) {
  std::string_view own = route.path;
  if (!own.ends_with('*')) return path == own;
  own.remove_suffix(1);
  return path.size() > own.size() && path.starts_with(own);
}

HttpResponse not_found(const std::string& path) {
  return to_response({404, "invalid_request_error", "there is no " + path + " here", "not_found"});
}

// What a page of another origin may send: whatever its browser asks about.
HttpResponse preflight(const HttpRequest& head) {
  HttpResponse response{204, "", "", {{"Access-Control-Allow-Methods", "GET, POST, OPTIONS"}}};
  const std::string asked = head.header("access-control-request-headers");
  const bool names = asked.size() <= 2000 && std::all_of(asked.begin(), asked.end(), [](unsigned char c) {
                       return std::isalnum(c) || c == '-' || c == '_' || c == ',' || c == ' ';
                     });
  if (names && !asked.empty()) response.headers.emplace_back("Access-Control-Allow-Headers", asked);
  return response;
}

// The key of "Authorization: Bearer KEY"; the scheme's name is the same in capitals.
std::string bearer(const std::string& header) {
  constexpr std::string_view scheme = "bearer ";
  if (!boost::algorithm::istarts_with(header, scheme)) return "";
  const size_t begin = header.find_first_not_of(' ', scheme.size());
  return begin == header.npos ? "" : header.substr(begin);
}

}  // namespace

std::optional<HttpResponse> Service::Impl::gate(const HttpRequest& head) const {
  const std::string method = head.method == "HEAD" ? "GET" : head.method;
  const Route* found = nullptr;
  std::string allowed;
  for (const Route& route : kRoutes)
    if (leads_to(route, head.path)) {
      allowed += (allowed.empty() ? "" : ", ") + std::string(route.method);
      if (method == route.method) found = &route;
    }
  if (allowed.empty()) return not_found(head.path);
  if (head.method == "OPTIONS" && !options.cors.empty()) return preflight(head);
  if (!found) {
    HttpResponse response =
        to_response({405, "invalid_request_error", head.path + " takes " + allowed, "method_not_allowed"});
    response.headers.emplace_back("Allow", allowed);
    return response;
  }
  if (!found->open && !options.keys.empty()) {
    const std::string given = head.header("authorization"), key_given = bearer(given);
    bool right = false;
    for (const std::string& key : options.keys) right |= same_key(key_given, key);
    if (!right)
      return to_response({401, "authentication_error",
                          given.empty() ? "an API key is needed: send the header Authorization: Bearer KEY"
                                        : "wrong API key",
                          "invalid_api_key"});
  }
  if (found->needs_model && !ready) return to_response({503, "unavailable_error", "Loading model"});
  if (found->needs_model && draining && found->path != std::string_view("/metrics"))
    return to_response({503, "unavailable_error", "the server ends"});
  return std::nullopt;
}

void Service::Impl::in_worker(std::shared_ptr<Reply> reply, std::function<void()> run) {
  constexpr size_t kMost = 1024;
  if (reading + fetching >= kMost)
    return reply->send(
        to_response({429, "rate_limit_error", "too many requests wait to be read; try again later",
                     "rate_limit_exceeded"}));
  ++reading;
  asio::post(workers, [this, reply = std::move(reply), run = std::move(run)] {
    [[maybe_unused]] thread_local const int before = work_alone();
    try {
      run();
    } catch (...) {
      reply->send(to_response(api_error(std::current_exception())));
    }
    --reading;
  });
}

void Service::Impl::handle(HttpRequest request, std::shared_ptr<Reply> reply) {
  const auto ok = [&](const json& body) { reply->send({200, "application/json", json_text(body), {}}); };
  if (request.path == "/")
    return reply->send(
        {200, "text/html; charset=utf-8", std::string(kPage), {{"Cache-Control", "no-cache"}}});
  if (request.path.starts_with("/examples/")) {
    for (size_t i = 0; i < kExamples.size(); ++i)
      if (request.path == concat("/examples/", i))
        return reply->send(
            {200, "image/jpeg", std::string(kExamples[i].picture), {{"Cache-Control", "max-age=86400"}}});
    return reply->send(not_found(request.path));
  }
  if (request.path == "/openapi.json")
    return reply->send({200, "application/json", std::string(kOpenApi), {}});
  if (request.path == "/health" || request.path == "/v1/health") return ok({{"status", "ok"}});
  if (request.path == "/metrics")
    return reply->send({200, "text/plain; version=0.0.4; charset=utf-8", metrics.text(gauges()), {}});
  if (request.path == "/v1/models") return ok(models());
  if (request.path.starts_with("/v1/models/")) return send_model(request.path.substr(11), *reply);
  if (request.path == "/props") return ok(props());
  const bool responses = request.path == "/v1/responses";
  if (responses || request.path == "/v1/chat/completions") {
    const auto chat = std::make_shared<Chat>(*this, reply, responses ? Api::responses : Api::chat);
    reply->on_gone([weak = std::weak_ptr(chat)] {
      if (const auto still = weak.lock()) still->cancel();
    });
    const auto from = std::make_shared<HttpRequest>(std::move(request));
    return in_worker(reply, [chat, from] { chat->start(from); });
  }
  in_worker(reply, [this, reply, request] {
    const json body = parse_body(request.body);
    const Tokenizer& tokenizer = engine->model().tokenizer();
    if (request.path == "/v1/tokenize") {
      const json& text = member(body, body.contains("content") ? "content" : "prompt");
      if (!text.is_string())
        throw ApiError(400, "invalid_request_error", "content: expected a text", "", "content");
      const json& special = member(body, "parse_special");
      if (!special.is_null() && !special.is_boolean())
        throw ApiError(400, "invalid_request_error", "parse_special: expected true or false", "",
                       "parse_special");
      const std::vector<int64_t> ids = tokenizer.encode(text.get<std::string>(), special != json(false));
      return reply->send({200, "application/json", json_text({{"tokens", ids}, {"count", ids.size()}}), {}});
    }
    std::vector<int64_t> ids;
    const json& tokens = member(body, "tokens");
    bool good = tokens.is_array();
    for (const json& id : tokens.is_array() ? tokens : json::array()) {
      good = good && id.is_number_integer() && id >= 0 && id < tokenizer.size();
      if (good) ids.push_back(id);
    }
    if (!good)
      throw ApiError(400, "invalid_request_error",
                     concat("tokens: expected a list of ids from 0 to ", tokenizer.size() - 1), "", "tokens");
    reply->send({200, "application/json", json_text({{"content", tokenizer.decode(ids, false)}}), {}});
  });
}

std::vector<std::pair<std::string, double>> Service::Impl::gauges() const {
  const Scheduler::State state = scheduler->state();
  const auto bound = static_cast<double>(options.scheduler.kv_bytes);
  return {{"num_requests_running", static_cast<double>(state.running)},
          {"num_requests_waiting", static_cast<double>(state.waiting + reading + fetching)},
          {"kv_cache_usage_perc", bound > 0 ? static_cast<double>(state.kv_reserved) / bound : 0},
          {"kv_cache_bytes", static_cast<double>(state.kv_used)},
          {"connections", static_cast<double>(http->connections())}};
}

json Service::Impl::models() const {
  json list = json::array();
  for (const std::string& id : served.ids()) list.push_back(model(id));
  return {{"object", "list"}, {"data", list}};
}

void Service::Impl::send_model(const std::string& path, Reply& reply) const {
  std::string id = path;
  try {
    id = decode_percent(path);
  } catch (const Error&) {  // then it is none that there is
  }
  try {
    served.check_id(id);
    reply.send({200, "application/json", json_text(model(id)), {}});
  } catch (const ApiError& error) {
    reply.send(to_response(error));
  }
}

json Service::Impl::props() const {
  json methods = json::array();
  for (const PrunerInfo& info : known_pruners(engine->pruner_context()))
    if (info.budgeted != PrunerInfo::Budgeted::never)  // clients give no boxes
      methods.push_back({{"name", info.name}, {"summary", info.summary}});
  json examples = json::array();
  if (options.engine.model.empty())  // others were not trained on these
    for (size_t i = 0; i < kExamples.size(); ++i)
      examples.push_back({{"picture", concat("/examples/", i)}, {"question", kExamples[i].question}});
  return {{"model", served.name},
          {"examples", examples},
          {"presets", served.presets},
          {"default_prune", engine->default_prune()},
          {"methods", methods},
          {"context_length", engine->model().max_positions()},
          {"max_images", options.max_images},
          {"max_videos", served.videos ? options.max_videos : 0},
          {"max_frames", options.max_frames},
          {"total_slots", options.scheduler.max_sequences},
          {"modalities", {{"vision", true}, {"video", served.videos}}}};
}

void Service::Impl::serve(std::stop_token stop) {
  engine = Engine::load(options.engine);
  served.engine = engine.get();
  served.videos = engine->model().takes_videos();
  served.video = video_defaults(*model_source(options.engine));
  engine->model().tokenizer();  // a model without one answers nobody
  for (const auto& [id, composition] : served.presets) {
    try {
      make_pruners(composition, engine->pruner_context());
    } catch (const Error& error) {
      glimpse::fail("--preset ", id, ": ", error.what());
    }
  }
  scheduler = std::make_unique<Scheduler>(*engine, options.scheduler);
  ready = true;
  scheduler->serve(stop);
}

Service::Service(ServeOptions options) : impl_(std::make_unique<Impl>(std::move(options))) {}

Service::~Service() = default;

std::string Service::url() const {
  const HttpOptions& http = impl_->options.http;
  const std::string host = http.host.find(':') == std::string::npos ? http.host : "[" + http.host + "]";
  return concat(http.certificate.empty() ? "http://" : "https://", host, ":", impl_->http->port());
}

void Service::run(std::stop_token stop) {
  Impl& impl = *impl_;
  std::jthread connections([&] { impl.http->run(); });
  std::exception_ptr failure;
  std::chrono::steady_clock::time_point end;
  {
    std::jthread stepping([&](std::stop_token over) {
      try {
        impl.serve(over);
      } catch (...) {
        const std::lock_guard lock(impl.mutex);
        failure = std::current_exception();
        impl.changed.notify_all();
      }
    });
    std::unique_lock lock(impl.mutex);
    impl.changed.wait(lock, stop, [&] { return failure != nullptr; });
    impl.draining = true;
    impl.http->drain();
    end = std::chrono::steady_clock::now() + impl.options.grace;
    // Running answers may end.
    impl.changed.wait_until(lock, end, [&] { return impl.open_chats == 0; });
  }
  impl.media.stop();
  impl.video_workers.join();
  impl.workers.join();
  // What is written last goes out, at the pace of its client.
  end = std::max(end, std::chrono::steady_clock::now() + std::chrono::seconds(1));
  while (impl.http->answering() > 0 && std::chrono::steady_clock::now() < end)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  impl.http->stop();
  connections.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace glimpse::serve
