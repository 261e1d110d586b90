#include "glimpse/serve/service.h"

#include <omp.h>
#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <openssl/sha.h>

#include <ATen/Parallel.h>

#include <boost/asio/post.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/thread_pool.hpp>
#include <condition_variable>
#include <iostream>
#include <thread>

#include "glimpse/base/check.h"
#include "glimpse/base/json_file.h"
#include "glimpse/image/overlay.h"
#include "glimpse/prune/registry.h"
#include "glimpse/serve/metrics.h"
#include "glimpse/serve/page.h"

namespace glimpse::serve {

namespace asio = boost::asio;
using Clock = std::chrono::steady_clock;
using nlohmann::json;

namespace {

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

int64_t unix_time() {
  return std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch())
      .count();
}

std::string random_id(const std::string& prefix) {
  std::array<unsigned char, 12> bytes{};
  RAND_bytes(bytes.data(), static_cast<int>(bytes.size()));
  std::string out = prefix;
  for (const unsigned char byte : bytes) {
    out += "0123456789abcdef"[byte >> 4];
    out += "0123456789abcdef"[byte & 15];
  }
  return out;
}

HttpResponse to_response(const ApiError& error) {
  HttpResponse response{error.status, "application/json", json_text(error_json(error)), {}};
  if (error.status == 429 || error.status == 503) response.headers.emplace_back("Retry-After", "1");
  if (error.status == 401) response.headers.emplace_back("WWW-Authenticate", "Bearer");
  return response;
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

std::string data_url(const Image& image) {
  const std::vector<uint8_t> png = encode_png(image);
  return "data:image/png;base64," + encode_base64({reinterpret_cast<const char*>(png.data()), png.size()});
}

// Of each image, with its kept tokens tinted.
json overlays(const Answer& answer, std::vector<Image> images) {
  for (size_t i = 0; i < answer.segments.size(); ++i) {
    const Segment& segment = answer.segments[i];
    Image& image = images.at(static_cast<size_t>(segment.medium));
    image = draw_kept(image, static_cast<int>(segment.rows), static_cast<int>(segment.cols),
                      answer.keep.at(i), segment.area);
  }
  json out = json::array();
  for (const Image& image : images) out.push_back(data_url(image));
  return out;
}

}  // namespace

struct Service::Impl {
  class Chat;
  class Sink;

  explicit Impl(ServeOptions given);
  std::optional<HttpResponse> gate(const HttpRequest& head) const;
  void handle(HttpRequest request, std::shared_ptr<Reply> reply);
  void in_worker(std::shared_ptr<Reply> reply, std::function<void()> run);
  std::vector<std::pair<std::string, double>> gauges() const;
  json models() const;
  json props() const;
  void serve(std::stop_token stop);

  const ServeOptions options;
  Served served;
  Pictures pictures;
  Metrics metrics;
  asio::thread_pool workers{2};
  std::atomic<size_t> reading = 0;  // requests that workers have not submitted yet
  std::atomic<bool> ready = false, draining = false;
  std::unique_ptr<Engine> engine;
  std::unique_ptr<Scheduler> scheduler;
  std::mutex mutex;
  std::condition_variable changed;
  size_t open_chats = 0;
  std::unique_ptr<HttpServer> http;
};

// One request for an answer. What happens to it comes through a strand, in order.
class Service::Impl::Chat : public std::enable_shared_from_this<Chat> {
 public:
  Chat(Impl& service, std::shared_ptr<Reply> reply)
      : service_(service), reply_(std::move(reply)), strand_(asio::make_strand(service.workers)) {
    const std::lock_guard lock(service_.mutex);
    ++service_.open_chats;
  }
  ~Chat() {
    const std::lock_guard lock(service_.mutex);
    --service_.open_chats;
    service_.changed.notify_all();
  }
  Chat(const Chat&) = delete;

  void cancel() { stop_.request_stop(); }
  void start(const HttpRequest& from);
  void take(int64_t choice, Event event) {
    asio::post(strand_, [self = shared_from_this(), choice, event = std::move(event)]() mutable {
      self->happen(choice, event);
    });
  }

 private:
  void happen(int64_t choice, Event& event);
  void prefilled(int64_t choice, const Answer& answer);
  void token(int64_t choice, const NextToken& next);
  void ended(int64_t choice, Ended& end);
  void finish();
  void fail(const ApiError& error);
  void say(const json& object) { reply_->write("data: " + json_text(object) + "\n\n"); }
  json kept(const Answer& answer);

  Impl& service_;
  std::shared_ptr<Reply> reply_;
  asio::strand<asio::thread_pool::executor_type> strand_;
  std::stop_source stop_;
  const Clock::time_point begin_ = Clock::now();
  Clock::time_point last_token_;
  ChatCall call_;
  ChatWriter writer_;
  std::vector<std::shared_ptr<const Answer>> answers_;
  json overlay_;
  bool begun_ = false, over_ = false, first_token_ = true;
};

class Service::Impl::Sink : public EventSink {
 public:
  Sink(std::shared_ptr<Chat> chat, int64_t choice) : chat_(std::move(chat)), choice_(choice) {}
  void push(Event event) override { chat_->take(choice_, std::move(event)); }

 private:
  const std::shared_ptr<Chat> chat_;
  const int64_t choice_;
};

void Service::Impl::Chat::start(const HttpRequest& from) {
  try {
    json body;
    try {
      body = json::parse(from.body);
    } catch (const json::exception& error) {
      throw ApiError(400, "invalid_request_error", std::string("the body is not JSON: ") + error.what());
    }
    call_ = read_chat(body, service_.served);
    writer_ = {random_id("chatcmpl-"), call_.model, unix_time(), &service_.engine->model().tokenizer(),
               call_.logprobs};
    for (const PictureSource& source : call_.pictures) {
      if (stop_.stop_requested()) return;
      call_.request.images.push_back(service_.pictures.get(source, call_.request.bounds));
    }
    call_.request.stop = stop_.get_token();
    answers_.resize(static_cast<size_t>(call_.choices));
    std::vector<std::shared_ptr<EventSink>> sinks;
    for (int64_t i = 0; i < call_.choices; ++i)
      sinks.push_back(std::make_shared<Sink>(shared_from_this(), i));
    const Request request = call_.request;
    if (!call_.wants.contains("overlay")) call_.request.images.clear();
    service_.scheduler->submit(request, call_.choices, sinks);
  } catch (...) {
    asio::post(strand_, [self = shared_from_this(), error = api_error(std::current_exception())] {
      self->fail(error);
    });
  }
}

void Service::Impl::Chat::happen(int64_t choice, Event& event) {
  if (over_) return;
  try {
    if (const auto* done = std::get_if<PrefillDone>(&event)) prefilled(choice, *done->answer);
    if (const auto* next = std::get_if<NextToken>(&event)) token(choice, *next);
    if (auto* end = std::get_if<Ended>(&event)) ended(choice, *end);
  } catch (...) {
    fail(api_error(std::current_exception()));
  }
}

json Service::Impl::Chat::kept(const Answer& answer) {
  json out = kept_json(answer, call_.wants);
  if (call_.wants.contains("overlay")) {
    if (overlay_.is_null()) overlay_ = overlays(answer, std::move(call_.request.images));
    for (size_t i = 0; i < out["images"].size() && i < overlay_.size(); ++i)
      out["images"][i]["overlay"] = overlay_[i];
  }
  return out;
}

void Service::Impl::Chat::prefilled(int64_t choice, const Answer& answer) {
  if (choice == 0) {
    Metrics& metrics = service_.metrics;
    metrics.add("prompt_tokens_total", static_cast<double>(answer.prompt_tokens));
    metrics.add("visual_tokens_total", static_cast<double>(answer.visual_tokens));
    metrics.add("visual_tokens_kept_total", static_cast<double>(answer.kept_tokens));
    if (answer.visual_tokens > 0) {
      metrics.observe("visual_tokens_kept_share",
                      static_cast<double>(answer.kept_tokens) / static_cast<double>(answer.visual_tokens));
      metrics.add("prefix_cache_queries", static_cast<double>(answer.prompt_tokens));
      metrics.add("prefix_cache_hits", static_cast<double>(answer.cached_tokens));
    }
    metrics.observe(
        "request_queue_time_seconds",
        std::max(0.0, seconds_since(begin_) - (answer.times.vision + answer.times.prefill) / 1000));
  }
  if (!call_.stream) return;
  if (!begun_) {
    begun_ = true;
    reply_->begin(
        {200, "text/event-stream", "", {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}}});
  }
  json chunk = writer_.chunk(choice, {{"role", "assistant"}, {"content", ""}});
  if (choice == 0) chunk["glimpse"] = kept(answer);
  say(chunk);
}

void Service::Impl::Chat::token(int64_t choice, const NextToken& next) {
  Metrics& metrics = service_.metrics;
  metrics.add("generation_tokens_total");
  metrics.observe(first_token_ ? "time_to_first_token_seconds" : "inter_token_latency_seconds",
                  seconds_since(first_token_ ? begin_ : last_token_));
  first_token_ = false;
  last_token_ = Clock::now();
  if (!call_.stream || (next.text.empty() && !call_.logprobs)) return;
  json chunk = writer_.chunk(choice, {{"content", next.text}});
  if (call_.logprobs) chunk["choices"][0]["logprobs"] = writer_.logprobs_of({next.token});
  say(chunk);
}

void Service::Impl::Chat::ended(int64_t choice, Ended& end) {
  if (end.error) return fail(api_error(end.error));
  if (end.answer->finish_reason == "cancelled")
    return fail({503, "unavailable_error", "the server ends; the answer was stopped"});
  answers_[static_cast<size_t>(choice)] = end.answer;
  service_.metrics.add("request_success_total", 1, "finished_reason=\"" + end.answer->finish_reason + "\"");
  if (call_.stream) {
    if (!end.text.empty()) say(writer_.chunk(choice, {{"content", end.text}}));
    say(writer_.chunk(choice, json::object(), end.answer->finish_reason));
  }
  for (const auto& answer : answers_)
    if (!answer) return;
  finish();
}

void Service::Impl::Chat::finish() {
  over_ = true;
  service_.metrics.observe("e2e_request_latency_seconds", seconds_since(begin_));
  if (!call_.stream)
    return reply_->send(
        {200, "application/json", json_text(writer_.answer(answers_, kept(*answers_[0]))), {}});
  if (call_.include_usage) say(writer_.usage_chunk(answers_));
  reply_->write("data: [DONE]\n\n");
  reply_->end();
}

void Service::Impl::Chat::fail(const ApiError& error) {
  over_ = true;
  cancel();  // the other choices
  service_.metrics.add("request_failure_total", 1, "status=\"" + std::to_string(error.status) + "\"");
  if (!begun_) return reply_->send(to_response(error));
  say(error_json(error));
  reply_->write("data: [DONE]\n\n");
  reply_->end();
}

Service::Impl::Impl(ServeOptions given)
    : options(std::move(given)), pictures(options.pictures), metrics(options.name) {
  served.name = options.name;
  served.presets = options.presets;
  served.max_images = options.max_images;
  served.max_new_tokens = options.max_new_tokens;
  HttpOptions http_options = options.http;
  if (!options.cors.empty()) {
    http_options.headers.emplace_back("Access-Control-Allow-Origin", options.cors);
    http_options.headers.emplace_back("Access-Control-Allow-Methods", "GET, POST, OPTIONS");
    http_options.headers.emplace_back("Access-Control-Allow-Headers", "authorization, content-type");
  }
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
  const char *method, *path;
  bool open, needs_model;  // without a key; answered once the model is there
};
constexpr Route kRoutes[] = {
    {"GET", "/", true, false},
    {"GET", "/health", true, true},
    {"GET", "/v1/health", true, true},
    {"GET", "/metrics", false, true},
    {"GET", "/props", false, true},
    {"GET", "/v1/models", false, true},
    {"POST", "/v1/chat/completions", false, true},
    {"POST", "/v1/tokenize", false, true},
    {"POST", "/v1/detokenize", false, true},
};

}  // namespace

std::optional<HttpResponse> Service::Impl::gate(const HttpRequest& head) const {
  const std::string method = head.method == "HEAD" ? "GET" : head.method;
  const Route* found = nullptr;
  std::string allowed;
  for (const Route& route : kRoutes)
    if (head.path == route.path) {
      allowed += (allowed.empty() ? "" : ", ") + std::string(route.method);
      if (method == route.method) found = &route;
    }
  if (allowed.empty())
    return to_response({404, "invalid_request_error", "there is no " + head.path + " here", "not_found"});
  if (head.method == "OPTIONS" && !options.cors.empty()) return HttpResponse{204, "", "", {}};
  if (!found) {
    HttpResponse response =
        to_response({405, "invalid_request_error", head.path + " takes " + allowed, "method_not_allowed"});
    response.headers.emplace_back("Allow", allowed);
    return response;
  }
  if (!found->open && !options.keys.empty()) {
    const std::string given = head.header("authorization");
    bool right = false;
    for (const std::string& key : options.keys) right |= same_key(given, "Bearer " + key);
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
  if (reading >= kMost)
    return reply->send(
        to_response({429, "rate_limit_error", "too many requests wait to be read; try again later"}));
  ++reading;
  asio::post(workers, [this, reply = std::move(reply), run = std::move(run)] {
    thread_local const bool prepared = [] {
      at::get_num_threads();  // sets this thread up, which must come first
      omp_set_num_threads(1);
      return true;
    }();
    (void)prepared;
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
  if (request.path == "/health" || request.path == "/v1/health") return ok({{"status", "ok"}});
  if (request.path == "/metrics")
    return reply->send({200, "text/plain; version=0.0.4; charset=utf-8", metrics.text(gauges()), {}});
  if (request.path == "/v1/models") return ok(models());
  if (request.path == "/props") return ok(props());
  if (request.path == "/v1/chat/completions") {
    const auto chat = std::make_shared<Chat>(*this, reply);
    reply->on_gone([weak = std::weak_ptr(chat)] {
      if (const auto still = weak.lock()) still->cancel();
    });
    const auto from = std::make_shared<HttpRequest>(std::move(request));
    return in_worker(reply, [chat, from] { chat->start(*from); });
  }
  in_worker(reply, [this, reply, request] {
    json body = json::parse(request.body, nullptr, false);
    if (!body.is_object()) throw ApiError(400, "invalid_request_error", "the body is no JSON object");
    const Tokenizer& tokenizer = engine->model().tokenizer();
    if (request.path == "/v1/tokenize") {
      const json text = body.contains("content") ? body["content"] : body.value("prompt", json());
      if (!text.is_string())
        throw ApiError(400, "invalid_request_error", "content: expected a text", "", "content");
      const std::vector<int64_t> ids =
          tokenizer.encode(text.get<std::string>(), body.value("parse_special", true) == json(true));
      return reply->send({200, "application/json", json_text({{"tokens", ids}, {"count", ids.size()}}), {}});
    }
    std::vector<int64_t> ids;
    const json tokens = body.value("tokens", json());
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
          {"num_requests_waiting", static_cast<double>(state.waiting + reading)},
          {"kv_cache_usage_perc", bound > 0 ? static_cast<double>(state.kv_reserved) / bound : 0},
          {"kv_cache_bytes", static_cast<double>(state.kv_used)},
          {"connections", static_cast<double>(http->connections())}};
}

json Service::Impl::models() const {
  json list = json::array();
  for (const std::string& id : served.ids())
    list.push_back({{"id", id}, {"object", "model"}, {"created", 0}, {"owned_by", "glimpse"}});
  return {{"object", "list"}, {"data", list}};
}

json Service::Impl::props() const {
  json methods = json::array();
  for (const PrunerInfo& info : known_pruners(engine->pruner_context()))
    methods.push_back({{"name", info.name}, {"summary", info.summary}});
  return {{"model", served.name},
          {"presets", served.presets},
          {"default_prune", engine->default_prune()},
          {"methods", methods},
          {"context_length", engine->model().max_positions()},
          {"max_images", options.max_images},
          {"total_slots", options.scheduler.max_sequences},
          {"modalities", {{"vision", true}}}};
}

void Service::Impl::serve(std::stop_token stop) {
  engine = Engine::load(options.engine);
  served.engine = engine.get();
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
  {
    std::jthread stepping([&](std::stop_token end) {
      try {
        impl.serve(end);
      } catch (...) {
        failure = std::current_exception();
        const std::lock_guard lock(impl.mutex);
        impl.changed.notify_all();
      }
    });
    std::unique_lock lock(impl.mutex);
    const std::stop_callback wake(stop, [&] { impl.changed.notify_all(); });
    while (!stop.stop_requested() && !failure) impl.changed.wait_for(lock, std::chrono::milliseconds(200));
    impl.draining = true;
    impl.http->drain();
    // Running answers may end.
    impl.changed.wait_for(lock, impl.options.grace, [&] { return impl.open_chats == 0; });
  }
  impl.workers.join();
  {  // what was written last goes out
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    impl.http->stop();
  }
  connections.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace glimpse::serve
