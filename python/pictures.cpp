// What stands before a model: pictures, image processors, tokenizers.
#include "pictures.h"

#include <pybind11/stl.h>

#include "glimpse/base/json_file.h"
#include "glimpse/engine/engine.h"
#include "glimpse/image/clip_image.h"
#include "glimpse/image/overlay.h"
#include "glimpse/image/qwen_image.h"
#include "glimpse/image/video_out.h"
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

// Frames of a video that were chosen already.
std::vector<Image> frames_of(const py::list& from) {
  std::vector<Image> frames;
  for (const py::handle& each : from) frames.push_back(picture(each, {}));
  return frames;
}

Video video_of(const py::tuple& from) {
  const auto [source, options] = from.cast<std::pair<py::object, std::string>>();
  Video video;
  video.options.fields().from_json(json::parse(options), "glimpse.Video");
  if (py::isinstance<py::list>(source)) {
    std::vector<Image> frames = frames_of(source);
    const py::gil_scoped_release free;
    video.source = glimpse::video_of(std::move(frames), 0, "video");
  } else if (py::isinstance<py::bytes>(source)) {
    const auto bytes = source.cast<std::string_view>();
    const py::gil_scoped_release free;
    video.source = open_video(std::vector<uint8_t>(bytes.begin(), bytes.end()), "video");
  } else {
    const auto path = source.cast<std::string>();
    const py::gil_scoped_release free;
    video.source = open_video(path);
  }
  return video;
}

}  // namespace

Medium medium(const py::handle& from, const ImageBounds& bounds) {
  if (!py::isinstance<py::tuple>(from)) return picture(from, bounds.decode_options());
  Video video = video_of(py::reinterpret_borrow<py::tuple>(from));
  VideoOptions& options = video.options;
  if (!options.min_pixels) options.min_pixels = bounds.min_pixels;
  if (!options.max_pixels) options.max_pixels = bounds.max_pixels;
  return video;
}

namespace {

py::tuple to_python(const Patches& patches) {
  return py::make_tuple(patches.values(0, patches.pixel_values.size(0)),
                        py::make_tuple(patches.grid.t, patches.grid.h, patches.grid.w));
}

// Patches [t*h*w, values] and their grid (t, h, w), as Qwen2-VL's image processor makes them of a picture.
py::tuple qwen_pixels(const py::handle& from, const std::string& preprocessor_config) {
  const QwenImageOptions options = QwenImageOptions::from_json(json::parse(preprocessor_config));
  const Image image = picture(from, {});
  const auto patches = [&] {
    const py::gil_scoped_release free;
    return qwen_patches(image, options);
  }();
  return to_python(patches);
}

// The same of a video's frames, all of them, as Qwen2-VL's image processor makes them: each resized like a
// picture.
py::tuple qwen_video_pixels(const py::list& from, const std::string& preprocessor_config) {
  const QwenImageOptions options = QwenImageOptions::from_json(json::parse(preprocessor_config));
  std::vector<Image> frames = frames_of(from);
  check(!frames.empty(), "a video without frames");
  const auto patches = [&] {
    const py::gil_scoped_release free;
    for (Image& frame : frames) frame = qwen_resize(frame, options);
    Video video;
    // They stay as they are now.
    video.options.min_pixels = video.options.max_pixels = int64_t{frames[0].height} * frames[0].width;
    video.options.max_frames = std::max<int64_t>(2, std::ssize(frames));
    video.source = glimpse::video_of(std::move(frames), 0, "video");
    return qwen_patches(video, options);
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

// Of each pair of frames that is shown of a video the first, with its slice's grid, one beside the other.
Image sheet(const Video& video, const std::vector<KeptGrid>& slices) {
  constexpr int kFactor = 28, kColumns = 8;  // the indices do not depend on it
  const std::vector<int64_t> shown = sample_video(video.source->info(), video.options, kFactor).indices;
  std::vector<int64_t> firsts;
  for (size_t i = 0; i < slices.size(); ++i) firsts.push_back(shown.at(2 * i));
  std::vector<Image> drawn;
  video.source->read(firsts, [&](size_t i, const Image& frame) {
    drawn.push_back(draw_kept(frame, std::span(slices).subspan(i, 1)));
  });
  return contact_sheet(drawn, kColumns);
}

// PNG of the picture, or a video's frames, with what its grids (rows, cols, kept tokens, area) keep tinted
// and the rest dimmed.
py::bytes overlay(
    const py::handle& from,
    const std::vector<std::tuple<int64_t, int64_t, std::vector<int64_t>, std::array<double, 4>>>& grids) {
  std::vector<KeptGrid> kept;
  for (const auto& [rows, cols, keep, area] : grids)
    kept.push_back({rows, cols, keep, {area[0], area[1], area[2], area[3]}});
  const Medium shown = medium(from, {});
  const auto* const video = std::get_if<Video>(&shown);
  const std::vector<uint8_t> png =
      encode_png(video ? sheet(*video, kept) : draw_kept(std::get<Image>(shown), kept));
  return {reinterpret_cast<const char*>(png.data()), png.size()};
}

}  // namespace

void add_processing(py::module_& m) {
  m.def("overlay", &overlay);
  m.def("qwen_pixels", &qwen_pixels);
  m.def("qwen_video_pixels", &qwen_video_pixels);
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
