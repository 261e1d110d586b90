// What stands before a model: pictures, image processors, tokenizers.
#include "pictures.h"

#include <pybind11/stl.h>

#include "glimpse/base/json_file.h"
#include "glimpse/engine/engine.h"
#include "glimpse/image/clip_image.h"
#include "glimpse/image/overlay.h"
#include "glimpse/image/qwen_image.h"
#include "glimpse/io/model_dir.h"
#include "tensors.h"

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

}  // namespace

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

namespace {

py::tuple to_python(const Patches& patches) {
  return py::make_tuple(patches.pixel_values, py::make_tuple(patches.grid.t, patches.grid.h, patches.grid.w));
}

// Patches [t*h*w, values] and their grid (t, h, w), as Qwen2-VL's image processor makes them of a picture.
py::tuple qwen_pixels(const py::handle& from, const std::string& preprocessor_config) {
  const QwenImageOptions options = QwenImageOptions::from_json(json::parse(preprocessor_config));
  check(options.min_pixels > 0 && options.min_pixels <= options.max_pixels, "image bounds: min_pixels ",
        options.min_pixels, " must be positive and at most max_pixels ", options.max_pixels);
  const Image image = picture(from, {});
  const auto patches = [&] {
    const py::gil_scoped_release free;
    return qwen_patches(image, options);
  }();
  return to_python(patches);
}

// Pixels [3, H, W] as CLIP's image processor makes them of a picture; `pad` as LLaVA does it.
at::Tensor clip_pixels(const py::handle& from, const std::string& preprocessor_config, bool pad) {
  ClipImageOptions options = ClipImageOptions::from_json(json::parse(preprocessor_config));
  options.pad = options.pad || pad;
  const Image image = picture(from, {});
  const py::gil_scoped_release free;
  // One patch: the whole picture.
  return clip_patches(image, options, options.crop_size)
      .pixel_values.view({3, options.crop_size, options.crop_size});
}

// PNG of the picture with what its grids (rows, cols, kept tokens, area) keep tinted and the rest dimmed.
py::bytes overlay(
    const py::handle& from,
    const std::vector<std::tuple<int64_t, int64_t, std::vector<int64_t>, std::array<double, 4>>>& grids) {
  std::vector<KeptGrid> kept;
  for (const auto& [rows, cols, keep, area] : grids)
    kept.push_back({rows, cols, keep, {area[0], area[1], area[2], area[3]}});
  const std::vector<uint8_t> png = encode_png(draw_kept(picture(from, {}), kept));
  return {reinterpret_cast<const char*>(png.data()), png.size()};
}

}  // namespace

void add_processing(py::module_& m) {
  m.def("overlay", &overlay);
  m.def("qwen_pixels", &qwen_pixels);
  m.def("clip_pixels", &clip_pixels);
  m.def("cut_patches",
        [](const at::Tensor& pixels, int64_t patch) { return to_python(cut_patches(pixels, patch)); });
  m.def("model_dir", [](const std::string& name) {
    return (name.empty() ? builtin_model_dir() / "model" : resolve_model_dir(name)).string();
  });
  m.def("builtin_modules_dir", [] { return (builtin_model_dir() / "new_modules").string(); });
  py::class_<Tokenizer>(m, "Tokenizer")
      .def(py::init([](const std::string& dir) { return Tokenizer::load(dir); }))
      .def("encode", [](const Tokenizer& self, std::string_view text,
                        bool parse_special) { return self.encode(text, parse_special); })
      .def("decode", [](const Tokenizer& self, const std::vector<int64_t>& ids,
                        bool skip_special) { return self.decode(ids, skip_special); })
      .def("token_id", &Tokenizer::token_id)
      .def("__len__", &Tokenizer::size);
}

}  // namespace glimpse
