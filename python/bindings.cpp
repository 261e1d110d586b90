// The engine for Python: what python/glimpse/engine.py stands on. Settings cross as JSON, so that names,
// ranges and errors are those of the C++ settings lists; pictures and results cross as arrays.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <thread>

#include "built_from.h"
#include "glimpse/base/check.h"
#include "glimpse/base/json_file.h"
#include "glimpse/engine/scheduler.h"
#include "glimpse/eval/grid.h"
#include "glimpse/image/decode.h"
#include "glimpse/image/overlay.h"
#include "glimpse/prune/registry.h"

namespace py = pybind11;
using nlohmann::json;

namespace glimpse {

namespace {

using Pixels = py::array_t<uint8_t, py::array::c_style | py::array::forcecast>;

Image image_of(const Pixels& pixels) {
  check(pixels.ndim() == 3 && pixels.shape(2) == 3 && pixels.size() > 0,
        "a picture as an array has the shape [height, width, 3]");
  check(pixels.shape(0) <= 1 << 20 && pixels.shape(1) <= 1 << 20, "a picture of that size is too large");
  return {static_cast<int>(pixels.shape(1)), static_cast<int>(pixels.shape(0)),
          std::vector<uint8_t>(pixels.data(), pixels.data() + pixels.size())};
}

// A path, a file's bytes, or pixels [height, width, 3] uint8.
Image picture(const py::handle& from, const DecodeOptions& options) {
  if (py::isinstance<py::str>(from)) {
    const auto path = from.cast<std::string>();
    const py::gil_scoped_release free;
    return load_image(path, options);
  }
  if (py::isinstance<py::bytes>(from)) {
    const auto bytes = from.cast<std::string_view>();
    const py::gil_scoped_release free;
    return decode_image({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, "picture", options);
  }
  return image_of(from.cast<Pixels>());
}

template <class T>
py::array_t<T> array(const T* begin, size_t count) {
  return py::array_t<T>(static_cast<py::ssize_t>(count), begin);
}

py::dict to_dict(const Answer& answer) {
  py::dict out;
  out["text"] = py::bytes(answer.text).attr("decode")("utf-8", "replace");
  out["ids"] = answer.ids;
  out["finish_reason"] = answer.finish_reason;
  py::list images;
  size_t first = 0;
  for (size_t i = 0; i < answer.segments.size(); ++i) {
    const Segment& segment = answer.segments[i];
    const auto count = static_cast<size_t>(segment.count());
    py::dict image;
    image["rows"] = segment.rows;
    image["cols"] = segment.cols;
    image["area"] = py::make_tuple(segment.area.x1, segment.area.y1, segment.area.x2, segment.area.y2);
    if (i < answer.keep.size()) image["keep"] = array(answer.keep[i].data(), answer.keep[i].size());
    if (answer.scores.size() >= first + count) image["scores"] = array(answer.scores.data() + first, count);
    first += count;
    images.append(image);
  }
  out["images"] = images;
  out["prompt_tokens"] = answer.prompt_tokens;
  out["visual_tokens"] = answer.visual_tokens;
  out["kept_tokens"] = answer.kept_tokens;
  out["cached_tokens"] = answer.cached_tokens;
  out["kv_bytes"] = answer.kv_bytes;
  out["json"] = json_text({{"times_ms", answer.times.to_json()}, {"pruning", answer.pruning}});
  py::list tokens;
  for (const TokenInfo& token : answer.tokens)
    tokens.append(py::make_tuple(token.id, token.logprob, token.top));
  out["tokens"] = tokens;
  return out;
}

// A request on its way. Events are read by one thread.
class Running {
 public:
  Running(std::shared_ptr<EventQueue> events, std::stop_source stop)
      : events_(std::move(events)), stop_(std::move(stop)) {}
  ~Running() { cancel(); }
  Running(Running&& other) = default;

  /// ("prefill", answer so far), ("text", str) or ("end", answer), or None if nothing happens in that time.
  /// Raises what went wrong.
  py::object next(double seconds) {
    std::optional<Event> event;
    {
      const py::gil_scoped_release free;
      event = events_->pop(std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000)));
    }
    if (!event) return py::none();
    if (const auto* done = std::get_if<PrefillDone>(&*event))
      return py::make_tuple("prefill", to_dict(*done->answer));
    if (const auto* token = std::get_if<NextToken>(&*event)) return py::make_tuple("text", token->text);
    auto& end = std::get<Ended>(*event);
    if (end.error) std::rethrow_exception(end.error);
    return py::make_tuple("end", to_dict(*end.answer), end.text);
  }
  void cancel() { stop_.request_stop(); }

 private:
  std::shared_ptr<EventQueue> events_;
  std::stop_source stop_;
};

Request request_of(const json& from, const py::list& pictures) {
  Request request;
  for (const json& message : from.at("messages")) {
    Message to{message.at("role").get<std::string>(), {}};
    for (const json& part : message.at("parts"))
      to.parts.push_back(part.is_null() ? Part{Part::Kind::image, {}}
                                        : Part{Part::Kind::text, part.get<std::string>()});
    request.messages.push_back(std::move(to));
  }
  request.bounds.fields().from_json(from.at("bounds"), "pictures");
  for (const py::handle& each : pictures)
    request.images.push_back(picture(each, request.bounds.decode_options()));
  request.prune = from.at("prune").get<std::string>();
  if (!from.at("keep").is_null()) {
    const auto budget = parse_budget(from.at("keep").dump());
    check(budget.has_value(), "keep: expected a fraction in (0, 1] or a number of tokens above 1, got ",
          from.at("keep").dump());
    request.budget = *budget;
  }
  request.max_new_tokens = from.at("max_new_tokens").get<int64_t>();
  request.ignore_eos = from.at("ignore_eos").get<bool>();
  request.stop_strings = from.at("stop").get<std::vector<std::string>>();
  if (!from.at("logprobs").is_null()) request.logprobs = from.at("logprobs").get<int64_t>();
  return request;
}

// A model and the thread that steps its scheduler, so that any number of Python threads may ask.
class Server {
 public:
  Server(const std::string& settings, int64_t max_sequences, size_t cache_mb, const std::string& cache_dir) {
    EngineOptions options;
    options.fields().from_json(json::parse(settings), "glimpse.Engine");
    options.cache_mb = cache_mb;
    options.cache_dir = cache_dir;
    options.cache_build = app::kBuiltFrom;
    engine_ = Engine::load(options);
    scheduler_ = std::make_unique<Scheduler>(*engine_, SchedulerOptions{.max_sequences = max_sequences});
    stepping_ = std::jthread([this](std::stop_token stop) { scheduler_->serve(stop); });
  }

  /// Ends what runs, and the thread.
  void close() {
    stepping_.request_stop();
    if (stepping_.joinable()) stepping_.join();
  }

  Running submit(const std::string& text, const py::list& pictures) {
    const json from = json::parse(text);
    Request request = request_of(from, pictures);
    request.sampling = engine_->default_sampling();
    request.sampling.fields().from_json(from.at("sampling"), "sampling");
    const std::stop_source stop;
    request.stop = stop.get_token();
    const auto events = std::make_shared<EventQueue>();
    const std::shared_ptr<EventSink> sink = events;
    check(stepping_.joinable(), "the engine is closed");
    {
      const py::gil_scoped_release free;
      scheduler_->submit(request, 1, std::span(&sink, 1));
    }
    return {events, stop};
  }

  py::dict about() const {
    py::dict out;
    out["default_prune"] = engine_->default_prune();
    out["context_length"] = engine_->model().max_positions();
    py::dict methods;
    for (const PrunerInfo& info : known_pruners(engine_->pruner_context()))
      methods[py::str(info.name)] = info.summary;
    out["methods"] = methods;
    return out;
  }
  int64_t running() const {
    return static_cast<int64_t>(scheduler_->state().running + scheduler_->state().waiting);
  }

 private:
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Scheduler> scheduler_;
  std::jthread stepping_;  // ends first
};

// PNG of the picture with its kept tokens tinted and the others dimmed.
py::bytes overlay(const py::handle& from, int rows, int cols, const std::vector<int64_t>& keep,
                  const std::array<double, 4>& area) {
  const Box box{area[0], area[1], area[2], area[3]};
  const std::vector<uint8_t> png = encode_png(draw_kept(picture(from, {}), rows, cols, keep, box));
  return {reinterpret_cast<const char*>(png.data()), png.size()};
}

}  // namespace

}  // namespace glimpse

PYBIND11_MODULE(_engine, m) {
  using namespace glimpse;
  py::register_exception<Error>(m, "Error", PyExc_ValueError);
  py::class_<Running>(m, "Running").def("next", &Running::next).def("cancel", &Running::cancel);
  py::class_<Server>(m, "Server")
      .def(py::init([](const std::string& settings, int64_t max_sequences, size_t cache_mb,
                       const std::string& cache_dir) {
        const py::gil_scoped_release free;
        return std::make_unique<Server>(settings, max_sequences, cache_mb, cache_dir);
      }))
      .def("submit", &Server::submit)
      .def("close", &Server::close, py::call_guard<py::gil_scoped_release>())
      .def("about", &Server::about)
      .def("running", &Server::running);
  m.def("overlay", &overlay);
}
