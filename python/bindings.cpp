// The engine for Python: what the files of python/glimpse stand on. Settings cross as JSON, so that names,
// ranges and errors are those of the C++ settings lists; pictures, tensors and results cross as arrays.
#include <ATen/Parallel.h>
#include <omp.h>
#include <pybind11/iostream.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <future>
#include <iostream>
#include <thread>

#include "built_from.h"
#include "commands.h"
#include "glimpse/base/json_file.h"
#include "glimpse/engine/scheduler.h"
#include "glimpse/io/row_box.h"
#include "glimpse/models/video_settings.h"
#include "glimpse/nn/parallel.h"
#include "pictures.h"
#include "pruners.h"
#include "tensors.h"

namespace py = pybind11;
using nlohmann::json;

namespace glimpse {

namespace {

template <class T>
py::array_t<T> array(const T* begin, size_t count) {
  return py::array_t<T>(static_cast<py::ssize_t>(count), begin);
}

py::dict to_dict(const Answer& answer) {
  py::dict out;
  out["text"] = py::bytes(answer.text).attr("decode")("utf-8", "replace");
  out["ids"] = answer.ids;
  out["end_id"] = answer.end_id;
  out["logits"] = answer.logits.empty() ? py::object(py::none()) : py::cast(at::stack(answer.logits));
  out["finish_reason"] = answer.finish_reason;
  py::list images;
  size_t first = 0;
  for (size_t i = 0; i < answer.segments.size(); ++i) {
    const Segment& segment = answer.segments[i];
    const auto count = static_cast<size_t>(segment.count());
    py::dict image;
    image["picture"] = segment.medium;
    image["rows"] = segment.rows;
    image["cols"] = segment.cols;
    image["seconds"] = segment.seconds;
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
  out["shortcut"] = answer.shortcut;
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

  /// ("prefill", answer so far), ("token", str, id) or ("end", answer, str), or None if nothing happens in
  /// that time. Raises what went wrong.
  py::object next(double seconds) {
    std::optional<Event> event;
    {
      const py::gil_scoped_release free;
      event = events_->pop(std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000)));
    }
    if (!event) return py::none();
    if (const auto* done = std::get_if<PrefillDone>(&*event))
      return py::make_tuple("prefill", to_dict(*done->answer));
    if (const auto* token = std::get_if<NextToken>(&*event))
      return py::make_tuple("token", token->text, token->token.id);
    auto& end = std::get<Ended>(*event);
    if (end.error) std::rethrow_exception(end.error);
    return py::make_tuple("end", to_dict(*end.answer), end.text);
  }
  void cancel() { stop_.request_stop(); }

 private:
  std::shared_ptr<EventQueue> events_;
  std::stop_source stop_;
};

// While it lives, this thread works alone.
class Alone {
 public:
  Alone() = default;
  ~Alone() { omp_set_num_threads(before_); }
  Alone(const Alone&) = delete;

 private:
  const int before_ = work_alone();
};

// What Python has no bounds for becomes a float in JSON, and a float is no number of tokens.
int64_t whole(const json& from, const char* name) {
  check(from.at(name).is_number_integer() && !(from.at(name) > std::numeric_limits<int64_t>::max()), name,
        ": expected a whole number, got ", from.at(name).dump());
  return from.at(name).get<int64_t>();
}

Request request_of(const json& from, const py::list& pictures) {
  Request request;
  request.bounds.fields().from_json(from.at("bounds"), "pictures");
  for (const py::handle& each : pictures) request.media.push_back(medium(each, request.bounds));
  size_t shown = 0;
  for (const json& message : from.at("messages")) {
    Message to{message.at("role").get<std::string>(), {}};
    for (const json& part : message.at("parts"))
      to.parts.push_back(part.is_null() ? part_of(request.media.at(shown++))
                                        : Part{Part::Kind::text, part.get<std::string>()});
    request.messages.push_back(std::move(to));
  }
  if (!from.at("keep").is_null()) request.budget = budget_of(py::str(from.at("keep").dump()));
  request.reuse = parse_reuse(from.at("reuse").get<std::string>());
  request.max_new_tokens = whole(from, "max_new_tokens");
  request.ignore_eos = from.at("ignore_eos").get<bool>();
  request.stop_strings = from.at("stop").get<std::vector<std::string>>();
  if (!from.at("logprobs").is_null()) request.logprobs = whole(from, "logprobs");
  request.logits = from.at("logits").get<bool>();
  if (!from.at("stop_ids").is_null()) request.stop_ids = from.at("stop_ids").get<std::vector<int64_t>>();
  for (const json& image : from.at("boxes")) {
    request.boxes.emplace_back();
    for (const json& box : image) request.boxes.back().push_back(parse_box(box));
  }
  return request;
}

// A model and the thread that steps its scheduler, so that any number of Python threads may ask. That thread
// loads the model, too: OpenMP keeps the threads that loading needs, and no longer spins when there are more
// of them than cores.
class Server {
 public:
  Server(const std::string& settings, int64_t max_sequences, size_t cache_mb, const std::string& cache_dir) {
    EngineOptions options;
    options.fields().from_json(json::parse(settings), "glimpse.Engine");
    options.cache_mb = cache_mb;
    options.cache_dir = cache_dir;
    options.cache_build = app::kBuiltFrom;
    std::promise<void> loaded;
    std::future<void> loading = loaded.get_future();
    stepping_ = std::jthread([=, this, loaded = std::move(loaded)](std::stop_token stop) mutable {
      try {
        engine_ = Engine::load(options);
        video_ = video_defaults(*model_source(options));
        scheduler_ = std::make_unique<Scheduler>(*engine_, SchedulerOptions{.max_sequences = max_sequences});
      } catch (...) {
        loaded.set_exception(std::current_exception());
        return;
      }
      loaded.set_value();
      scheduler_->serve(stop);
    });
    loading.get();
  }

  /// Ends what runs, and the thread.
  void close() {
    stepping_.request_stop();
    if (stepping_.joinable()) stepping_.join();
  }

  /// `stages`: see pruners_of(); none: as the engine does by default. `ids` and `patches` (pixel values and
  /// grid (t, h, w) of each, and of a video the seconds between its slices): a prompt made elsewhere, in
  /// place of messages and pictures.
  Running submit(const std::string& text, const py::list& pictures, const std::optional<py::list>& stages,
                 const std::vector<int64_t>& ids, const py::list& patches) {
    const Alone alone;
    const json from = json::parse(text);
    Request request = request_of(from, pictures);
    if (stages) request.pruners = pruners_of(*stages, engine_->pruner_context());
    request.ids = ids;
    for (const py::handle& each : patches) {
      const auto [pixels, grid, seconds] =
          each.cast<std::tuple<py::object, std::array<int, 3>, std::optional<double>>>();
      Patches of{tensor_of(pixels, "pixel_values").to(at::kCPU, at::kFloat).contiguous(),
                 {grid[0], grid[1], grid[2]}};
      if (seconds) of.clip.emplace(*seconds);
      request.patches.push_back(std::move(of));
    }
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
    out["layers"] = engine_->pruner_context().layers;
    py::dict methods;
    for (const PrunerInfo& info : known_pruners(engine_->pruner_context()))
      methods[py::str(info.name)] = info.summary;
    out["methods"] = methods;
    out["video"] = VideoOptions(video_).fields().to_json().dump();
    return out;
  }
  py::object select(const std::string& method, const py::dict& given) const {
    return select_tokens(method, given, engine_->pruner_context());
  }
  int64_t running() const {
    return static_cast<int64_t>(scheduler_->state().running + scheduler_->state().waiting);
  }

 private:
  std::unique_ptr<Engine> engine_;
  VideoOptions video_;  // as the model wants them shown
  std::unique_ptr<Scheduler> scheduler_;
  std::jthread stepping_;  // ends first
};

// Runs a command of the program; its status. Ctrl-C stops it as it does in the program and is then raised.
// What it prints goes to sys.stdout and sys.stderr; the host's number of threads stays.
int run_command(std::vector<std::string> args) {
  args.insert(args.begin(), "glimpse");
  std::vector<const char*> argv;
  for (const std::string& arg : args) argv.push_back(arg.c_str());
  const py::scoped_ostream_redirect out(std::cout, py::module_::import("sys").attr("stdout"));
  const py::scoped_ostream_redirect err(std::cerr, py::module_::import("sys").attr("stderr"));
  const int threads = at::get_num_threads();
  app::Interrupt interrupt;
  auto running = std::async(std::launch::async, [&] {
    try {
      return app::Commands(interrupt).run(static_cast<int>(argv.size()), argv.data());
    } catch (const CLI::ParseError& error) {
      fail(error.what());
    }
  });
  bool interrupted = false;
  const auto done = [&] {
    const py::gil_scoped_release free;
    return running.wait_for(std::chrono::milliseconds(50)) == std::future_status::ready;
  };
  while (!done())
    if (PyErr_CheckSignals() != 0) {
      PyErr_Clear();  // raised once the command has ended
      interrupted = true;
      interrupt.stop();
    }
  at::set_num_threads(threads);
  const int status = running.get();
  if (interrupted) {
    PyErr_SetNone(PyExc_KeyboardInterrupt);
    throw py::error_already_set();
  }
  return status;
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
      .def("select", &Server::select)
      .def("close", &Server::close, py::call_guard<py::gil_scoped_release>())
      .def("about", &Server::about)
      .def("running", &Server::running);
  m.def("run", &run_command);
  add_processing(m);
  add_pruning(m);
}
