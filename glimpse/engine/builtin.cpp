#include <dlfcn.h>

#include "glimpse/engine/engine.h"

namespace glimpse {

std::filesystem::path builtin_model_dir() {
  // The library's own place tells an install (lib beside share) from a build tree (sources known at compile
  // time).
  std::vector<std::filesystem::path> places;
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&builtin_model_dir), &info) && info.dli_fname) {
    const auto library = std::filesystem::weakly_canonical(info.dli_fname);
    for (auto up = library.parent_path(); up.has_relative_path(); up = up.parent_path()) {
      places.push_back(up / "share" / "glimpse" / "models" / "tiny");
      places.push_back(up / "models" / "tiny");
    }
  }
  std::string looked;
  for (const auto& place : places) {
    if (std::filesystem::exists(place / "model" / "config.json")) return place;
    looked += "\n  " + place.string();
  }
  fail("the built-in model was not found; name a model with --model. Looked at:", looked);
}

}  // namespace glimpse
