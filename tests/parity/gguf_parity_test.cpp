// Blocks of every type as the gguf package of Python reads them (make_gguf.py).
#include "glimpse/io/gguf.h"
#include "glimpse/io/safetensors.h"
#include "parity/checkpoints.h"

using namespace glimpse;

TEST_CASE("blocks of every type read as the gguf package reads them") {
  const std::filesystem::path dir =
      test::required("GLIMPSE_GGUF_DIR", "must name the folder that make_gguf.py wrote");
  const Gguf gguf = Gguf::open(dir / "blocks.gguf");
  const auto expected = load_safetensors(dir / "blocks.safetensors").tensors;
  REQUIRE(gguf.entries().size() == 15);
  for (const auto& [name, tensor] : expected) {
    INFO(name);
    CHECK(at::equal(gguf.read(name, at::kFloat), tensor));
    CHECK(at::equal(gguf.read(name, at::kBFloat16), tensor.to(at::kBFloat16)));
  }
}
