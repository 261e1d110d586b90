// Pruning methods both ways: those written in Python for the engine, and the library's own as functions on
// tensors.
#include "pruners.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <numeric>

#include "glimpse/nn/index_tensor.h"
#include "tensors.h"

namespace py = pybind11;
using nlohmann::json;

namespace glimpse {

namespace {

constexpr std::pair<const char*, Cut::Place> kPlaces[] = {{"within", Cut::Place::within},
                                                          {"encoder", Cut::Place::encoder},
                                                          {"before", Cut::Place::before},
                                                          {"after", Cut::Place::after}};
constexpr std::pair<const char*, Cut::Ahead> kAhead[] = {{"none", Cut::Ahead::none},
                                                         {"with_rope", Cut::Ahead::with_rope},
                                                         {"without_rope", Cut::Ahead::without_rope}};

template <class Names>
auto named(const Names& names, const std::string& given, const char* what) {
  std::string known;
  for (const auto& [name, value] : names) {
    if (given == name) return value;
    known += concat(known.empty() ? "" : ", ", name);
  }
  throw py::value_error(concat("a cut's ", what, " is one of ", known, ", not '", given, "'"));
}
template <class Names, class Value>
const char* name_of(const Names& names, Value of) {
  return std::ranges::find(names, of, [](const auto& pair) { return pair.second; })->first;
}

py::object of_package(const char* name) {
  return py::module_::import("glimpse.pruning").attr(name);
}

template <class T>
T attribute(const py::object& of, const char* name) {
  try {
    return of.attr(name).cast<T>();
  } catch (const py::cast_error&) {
    throw py::type_error(concat(py::str(py::type::of(of)).cast<std::string>(), ".", name, " is ",
                                py::repr(of.attr(name)).cast<std::string>(),
                                ", which is of another type than expected"));
  }
}

Cut cut_of(const py::object& from) {
  Cut cut;
  cut.place = named(kPlaces, attribute<std::string>(from, "place"), "place");
  cut.layer = attribute<int64_t>(from, "layer");
  cut.trims_cache = attribute<bool>(from, "trims_cache");
  cut.renumbers = attribute<bool>(from, "renumbers");
  cut.ahead = named(kAhead, attribute<std::string>(from, "ahead"), "ahead");
  cut.reads_text = attribute<bool>(from, "reads_text");
  return cut;
}

py::object to_python(const Cut& cut) {
  return of_package("Cut")(name_of(kPlaces, cut.place), cut.layer, cut.trims_cache, cut.renumbers,
                           name_of(kAhead, cut.ahead), cut.reads_text);
}

Taps taps_of(const py::object& from) {
  Taps taps;
  taps.vision_layers = attribute<std::vector<int64_t>>(from, "vision_layers");
  taps.attention_layers = attribute<std::vector<int64_t>>(from, "attention_layers");
  taps.log_softmax = attribute<bool>(from, "log_softmax");
  for (const int64_t block : attribute<std::vector<int64_t>>(from, "vision_attention"))
    taps.vision_attention.push_back({block, false});
  taps.shared_space = attribute<bool>(from, "shared_space");
  taps.boxes = attribute<bool>(from, "boxes");
  return taps;
}

py::object to_python(const Budget& budget) {
  return of_package("Budget")(budget.keep, budget.count, budget.counts);
}

py::object optional_tensor(const at::Tensor& tensor) {
  return tensor.defined() ? py::cast(tensor) : py::object(py::none());
}

py::object to_python(const View& view) {
  py::dict out;
  py::list segments, attention;
  for (const Segment& each : view.segments)
    segments.append(of_package("Segment")(
        each.rows, each.cols, each.first, each.medium,
        py::make_tuple(each.area.x1, each.area.y1, each.area.x2, each.area.y2), each.seconds));
  for (const VisionAttention& each : view.vision_attention)
    attention.append(py::make_tuple(optional_tensor(each.received), optional_tensor(each.keys)));
  out["segments"] = segments;
  out["living"] = view.index.defined() ? view.index : index_tensor(view.living, at::kCPU);
  out["hidden"] = optional_tensor(view.hidden);
  out["text_hidden"] = optional_tensor(view.text_hidden);
  out["question"] = optional_tensor(view.question);
  py::list states;
  for (const at::Tensor& each : view.vision_states) states.append(each);
  out["vision_states"] = states;
  out["windows"] = at::tensor(view.windows, at::kLong);
  out["attention"] = optional_tensor(view.attention);
  out["vision_attention"] = attention;
  out["shared_image"] = optional_tensor(view.shared_image);
  out["shared_question"] = optional_tensor(view.shared_question);
  out["ahead"] = optional_tensor(view.ahead);
  py::list boxes;
  for (const std::vector<Box>& image : view.boxes) {
    py::list of_image;
    for (const Box& box : image) of_image.append(py::make_tuple(box.x1, box.y1, box.x2, box.y2));
    boxes.append(of_image);
  }
  out["boxes"] = boxes;
  return of_package("View")(**out);
}

// A method that is written in Python. Its code runs on the thread that steps, which waits for it.
class PythonPruner : public Pruner {
 public:
  PythonPruner(py::object object, const PrunerContext& context) : object_(std::move(object)) {
    const py::object model =
        of_package("ModelInfo")(context.layers, default_cut_layer(context), context.shallow_block,
                                context.class_token, context.text_tower);
    name_ = attribute<std::string>(object_, "name");
    const py::object text = py::module_::import("json").attr("dumps")(
        object_.attr("settings")(), py::arg("default") = py::module_::import("builtins").attr("repr"));
    settings_ = json::parse(text.cast<std::string>());
    for (const py::handle& cut : object_.attr("cuts")(model))
      cuts_.push_back(cut_of(py::reinterpret_borrow<py::object>(cut)));
    taps_ = taps_of(object_.attr("taps")(model));
    check(!cuts_.empty(), "pruning: ", name_, " cuts nowhere");
    for (const Cut& cut : cuts_)
      check(cut.layer >= 0 && (cut.place == Cut::Place::within || cut.layer < context.layers), "pruning: '",
            name_, "' cuts at layer ", cut.layer, " but the model has ", context.layers, " layers");
  }
  ~PythonPruner() override {
    const py::gil_scoped_acquire gil;
    object_.release().dec_ref();
  }
  PythonPruner(const PythonPruner&) = delete;

  std::string name() const override { return name_; }
  json settings() const override { return settings_; }
  std::vector<Cut> cuts() const override { return cuts_; }
  Taps taps() const override { return taps_; }

  Selection select(const View& view, const Cut& cut, const Budget& budget) const override {
    const py::gil_scoped_acquire gil;
    const py::object given = object_.attr("select")(to_python(view), to_python(cut), to_python(budget));
    const bool whole = py::isinstance(given, of_package("Selection"));
    Selection out;
    const py::object keep = whole ? given.attr("keep") : given;
    out.keep = indices(keep, view.count());
    if (!whole) return out;
    if (const py::object features = given.attr("features"); !features.is_none()) {
      out.features = tensor_of(features, "features");
      check(out.features.dim() == 2 && out.features.size(0) == std::ssize(out.keep) &&
                out.features.size(1) == view.hidden.size(1),
            "pruning: ", name_, " gave features of the shape ", out.features.sizes(), ", expected [",
            out.keep.size(), ", ", view.hidden.size(1), "]");
      out.features = out.features.to(view.hidden.options());
    }
    if (const py::object scores = given.attr("scores"); !scores.is_none()) {
      out.scores = tensor_of(scores, "scores").to(at::kCPU, at::kFloat).contiguous();
      check(out.scores.dim() == 1 && out.scores.size(0) == view.count(), "pruning: ", name_,
            " gave scores of the shape ", out.scores.sizes(), ", expected [", view.count(), "]");
    }
    return out;
  }

 private:
  std::vector<int64_t> indices(const py::object& keep, int64_t count) const {
    at::Tensor index = tensor_of(keep, "indices").cpu();
    check(index.dim() == 1, "pruning: ", name_, " gave indices of the shape ", index.sizes(),
          ", expected one dimension");
    if (index.scalar_type() == at::kBool) {
      check(index.size(0) == count, "pruning: ", name_, " gave a mask of ", index.size(0),
            " tokens, expected ", count);
      index = index.nonzero().flatten();
    }
    check(index.numel() == 0 || !index.is_floating_point(), "pruning: ", name_,
          " gave indices that are no integers");
    std::vector<int64_t> list = list_of(index.to(at::kLong));
    std::ranges::sort(list);
    for (size_t i = 0; i < list.size(); ++i) {
      check(list[i] >= 0 && list[i] < count, "pruning: ", name_, " keeps the token ", list[i], " of ", count);
      check(i == 0 || list[i] != list[i - 1], "pruning: ", name_, " keeps the token ", list[i], " twice");
    }
    return list;
  }

  py::object object_;
  std::string name_;
  json settings_;
  std::vector<Cut> cuts_;
  Taps taps_;
};

py::list methods(const PrunerContext& context) {
  py::list out;
  for (const PrunerInfo& info : known_pruners(context)) {
    py::dict settings;
    for (const PrunerInfo::Setting& setting : info.settings) settings[py::str(setting.name)] = setting.about;
    out.append(py::make_tuple(info.name, info.summary, settings));
  }
  return out;
}

void register_python(const std::string& name, const std::string& summary, const py::object& factory) {
  // Kept for good: a composition may name the method as long as the process lives.
  const auto make = std::make_shared<py::handle>(py::object(factory).release());
  register_pruner(
      name, summary,
      [make](const PrunerContext& context, const auto& settings) -> std::shared_ptr<const Pruner> {
        const py::gil_scoped_acquire gil;
        py::dict given;
        for (const auto& [key, value] : settings) given[py::str(key)] = value;
        return std::make_shared<PythonPruner>((*make)(given), context);
      });
}

}  // namespace

PrunerChain pruners_of(const py::list& stages, const PrunerContext& context) {
  PrunerChain chain;
  for (const py::handle& stage : stages) {
    if (!py::isinstance<py::str>(stage)) {
      chain.push_back(std::make_shared<PythonPruner>(py::reinterpret_borrow<py::object>(stage), context));
      continue;
    }
    for (auto& each : make_pruners(stage.cast<std::string>(), context)) chain.push_back(std::move(each));
  }
  return chain;
}

py::object select_tokens(const std::string& method, const py::dict& given, const PrunerContext& context) {
  const PrunerChain chain = make_pruners(method, context);
  if (chain.size() != 1) throw py::value_error("select() runs one method; '" + method + "' is not one");
  const Pruner& pruner = *chain[0];
  const Taps taps = pruner.taps();
  const auto tensor = [&](const char* name, bool needed) {
    if (given.contains(name)) return tensor_of(given[name], name);
    if (needed) throw py::type_error(concat("select(): ", pruner.name(), " needs ", name));
    return at::Tensor();
  };
  const std::vector<Cut> cuts = pruner.cuts();
  const auto number = given.contains("cut") ? given["cut"].cast<int64_t>() : std::ssize(cuts) - 1;
  if (number < 0 || number >= std::ssize(cuts))
    throw py::value_error(concat("select(): ", pruner.name(), " has ", cuts.size(), " cuts"));
  const Cut& cut = cuts[number];

  std::vector<Segment> segments;
  for (const auto& [rows, cols] : given["grids"].cast<std::vector<std::pair<int64_t, int64_t>>>()) {
    if (rows <= 0 || cols <= 0 || rows > 1 << 20 || cols > 1 << 20)
      throw py::value_error(concat("select(): a grid of ", rows, " x ", cols));
    segments.push_back({rows, cols, total_tokens(segments), whole_image, std::ssize(segments)});
  }
  const int64_t total = total_tokens(segments);
  View view;
  view.segments = segments;
  view.living.resize(total);
  if (given.contains("living")) {
    view.living = list_of(tensor_of(given["living"], "living").cpu().to(at::kLong));
    for (size_t i = 0; i < view.living.size(); ++i)
      if (view.living[i] < (i == 0 ? 0 : view.living[i - 1] + 1) || view.living[i] >= total)
        throw py::value_error(concat("select(): living: expected ascending indices below ", total));
  } else {
    std::iota(view.living.begin(), view.living.end(), 0);
  }
  view.hidden = tensor("hidden", true);
  view.text_hidden = tensor("text_hidden", false);
  view.question = tensor("question", false);
  if (!view.question.defined() && view.text_hidden.defined())
    view.question =
        at::arange(view.text_hidden.size(0), at::TensorOptions(at::kLong).device(view.hidden.device()));
  view.attention = tensor("attention", !taps.attention_layers.empty());
  view.ahead = tensor("ahead", cut.ahead != Cut::Ahead::none);
  view.shared_image = tensor("shared_image", taps.shared_space);
  view.shared_question = tensor("shared_question", taps.shared_space);
  std::vector<at::Tensor> states, received, keys;
  const auto tensors = [&](const char* name, size_t count) {
    std::vector<at::Tensor> out;
    if (count == 0) return out;
    if (given.contains(name))
      for (const py::handle& each : given[name])
        out.push_back(tensor_of(py::reinterpret_borrow<py::object>(each), name));
    if (out.size() != count)
      throw py::type_error(
          concat("select(): ", pruner.name(), " needs ", count, " of ", name, ", got ", out.size()));
    for (const at::Tensor& each : out) rows_are(each, total, name);
    return out;
  };
  view.vision_states = tensors("vision_states", taps.vision_layers.size());
  received = tensors("vision_attention", taps.vision_attention.size());
  if (!received.empty()) keys = tensors("vision_keys", received.size());
  for (size_t i = 0; i < received.size(); ++i) view.vision_attention.push_back({received[i], keys[i]});
  std::vector<int64_t> windows(total);
  if (given.contains("windows"))
    windows = list_of(tensor_of(given["windows"], "windows").cpu().to(at::kLong));
  if (std::ssize(windows) != total)
    throw py::value_error(concat("select(): windows: expected ", total, " numbers"));
  view.windows = windows;
  std::vector<std::vector<Box>> boxes;
  if (given.contains("boxes"))
    for (const auto& image : given["boxes"].cast<std::vector<std::vector<std::array<double, 4>>>>()) {
      boxes.emplace_back();
      for (const auto& [x1, y1, x2, y2] : image) boxes.back().push_back({x1, y1, x2, y2});
    }
  view.boxes = boxes;
  rows_are(view.hidden, view.count(), "hidden");
  for (const auto& [name, each] : {std::pair("attention", view.attention), {"ahead", view.ahead}})
    if (each.defined()) rows_are(each, view.count(), name);
  if (view.shared_image.defined()) rows_are(view.shared_image, total, "shared_image");
  view.index = index_tensor(view.living, view.hidden.device());
  const Budget budget = given.contains("keep") ? budget_of(given["keep"]) : Budget();
  Selection selection;
  {
    const py::gil_scoped_release free;
    const at::NoGradGuard no_grad;
    selection = pruner.select(view, cut, budget);
  }
  return of_package("Selection")(py::array_t<int64_t>(std::ssize(selection.keep), selection.keep.data()),
                                 optional_tensor(selection.features), optional_tensor(selection.scores));
}

void add_pruning(py::module_& m) {
  m.def("methods", [] { return methods({}); });
  m.def("register", &register_python);
  m.def("tokens_of", [](std::optional<double> keep, std::optional<int64_t> count, std::vector<int64_t> counts,
                        int64_t total) {
    return Budget{keep, count, std::move(counts)}.of(total);
  });
  m.def("select", [](const std::string& method, const py::dict& given, int64_t layers) {
    PrunerContext context;
    context.layers = layers;
    return select_tokens(method, given, context);
  });
}

}  // namespace glimpse
