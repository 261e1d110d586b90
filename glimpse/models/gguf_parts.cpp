#include "glimpse/models/gguf_parts.h"

#include "glimpse/base/atomic_file.h"
#include "glimpse/models/config.h"

namespace glimpse {

using nlohmann::json;

std::string text_of(const Gguf& gguf, const char* key) {
  const json& value = member(gguf.metadata(), key);
  return value.is_string() ? value.get<std::string>() : "";
}

int64_t block_count(const Gguf& gguf, const char* key) {
  const auto count = need<int64_t>(gguf.metadata(), key, gguf.file());
  check(count > 0 && count <= 1024, gguf.file(), ": ", key, " is ", count);
  return count;
}

// llama.cpp scales linearly where a file names a factor and no kind; 0 means none.
void check_unscaled_rope(const Gguf& gguf, const std::string& architecture) {
  const json& meta = gguf.metadata();
  const std::string type = architecture + ".rope.scaling.type";
  const json& kind = member(meta, type.c_str());
  check(kind.is_null() || kind == "none", gguf.file(), ": rope scaling is not supported (", type, " is ",
        kind.dump(), ")");
  for (const char* ending : {".rope.scaling.factor", ".rope.scale_linear", ".rope.scaling.attn_factor"}) {
    const std::string key = architecture + ending;
    const double factor = meta.contains(key) ? need<double>(meta, key.c_str(), gguf.file()) : 1;
    check(factor == 1 || factor == 0 || kind == "none", gguf.file(), ": rope scaling is not supported (", key,
          " is ", factor, ")");
  }
}

void check_projector(const Gguf& vision, const std::string& known) {
  const std::string other = text_of(vision, "general.architecture");
  check(other == "clip", vision.file(), " holds no vision encoder: its architecture is '", other,
        "', expected 'clip'");
  const std::string projector = text_of(vision, "clip.projector_type"),
                    type = projector.empty() ? text_of(vision, "clip.vision.projector_type") : projector;
  check(type == known, vision.file(), ": projector type '", type, "' is not supported (known: ", known, ")");
}

void write_text(const std::filesystem::path& path, const std::string& text) {
  AtomicFile file(path);
  file.stream() << text << '\n';
  file.commit();
}

}  // namespace glimpse
