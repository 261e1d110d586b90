#include "glimpse/io/gguf.h"

#include <limits>

#include "io/gguf_bytes.h"
#include "io/scratch.h"

using namespace glimpse;
using namespace glimpse::test;

namespace {

constexpr uint32_t kU8 = 0, kU32 = 4, kF32 = 6, kBool = 7, kText = 8, kList = 9, kF64 = 12;
constexpr uint32_t kTypeF32 = 0, kTypeF16 = 1, kTypeQ40 = 2, kTypeQ80 = 8, kTypeQ4K = 12, kTypeQ6K = 14,
                   kTypeBf16 = 30;

std::string half(float value) {
  return bytes_of(c10::Half(value).x);
}

template <class T>
std::string list_bytes(uint32_t kind, const std::vector<T>& items) {
  std::string bytes = bytes_of(kind) + bytes_of(uint64_t{items.size()});
  for (const T& item : items) {
    if constexpr (std::is_same_v<T, std::string>)
      bytes += text_bytes(item);
    else
      bytes += bytes_of(item);
  }
  return bytes;
}

std::string floats(const std::vector<float>& values) {
  std::string bytes;
  for (const float value : values) bytes += bytes_of(value);
  return bytes;
}

/// One of every kind of metadata, a [2, 3] float32 tensor and a [32] tensor in Q8_0.
GgufBytes small() {
  GgufBytes g;
  g.key("general.architecture", kText, text_bytes("qwen2vl"));
  g.key("eps", kF32, bytes_of(1e-6f));
  g.key("wide", kF64, bytes_of(0.1));
  g.key("count", kU32, bytes_of(uint32_t{7}));
  g.key("yes", kBool, std::string(1, '\1'));
  g.key("tokens", kList, list_bytes<std::string>(kText, {"a", "", "\xff"}));
  g.key("sections", kList, list_bytes<uint32_t>(kU32, {16, 24, 24, 0}));
  g.tensor("plain", {3, 2}, kTypeF32, 0);
  g.tensor("packed", {32}, kTypeQ80, 32);
  g.data = floats({0, 1, 2, 3, 4, 5}) + std::string(8, '\0') + half(0.5f);
  for (int i = 0; i < 32; ++i) g.data += static_cast<char>(i - 16);
  return g;
}

at::Tensor read(const Scratch& scratch, const GgufBytes& g, const std::string& name,
                at::ScalarType type = at::kFloat) {
  return Gguf::open(scratch.write("x.gguf", g.file())).read(name, type);
}

/// One block of a type.
GgufBytes block_of(uint32_t type, uint64_t values, const std::string& bytes) {
  GgufBytes g;
  g.tensor("w", {values}, type, 0);
  g.data = bytes;
  return g;
}

}  // namespace

TEST_CASE("metadata and tensors of a GGUF file") {
  const Scratch scratch;
  for (const uint32_t version : {2, 3}) {
    GgufBytes g = small();
    g.version = version;
    const Gguf gguf = Gguf::open(scratch.write("x.gguf", g.file()));
    CHECK(gguf.metadata()["general.architecture"] == "qwen2vl");
    CHECK(gguf.metadata()["eps"] == 1e-6);  // not the float32's own value
    CHECK(gguf.metadata()["wide"] == 0.1);
    CHECK(gguf.metadata()["count"] == 7);
    CHECK(gguf.metadata()["yes"] == true);
    CHECK(gguf.metadata()["tokens"] == nlohmann::json({"a", "", "\xff"}));
    CHECK(gguf.metadata()["sections"] == nlohmann::json({16, 24, 24, 0}));
    CHECK((gguf.entries().at("plain").shape == std::vector<int64_t>{2, 3}));
    CHECK(gguf.entries().at("packed").bytes == 34);
    CHECK(at::equal(gguf.read("plain", at::kFloat), at::arange(6.f).view({2, 3})));
    CHECK(at::equal(gguf.read("plain", at::kBFloat16), at::arange(6.f).view({2, 3}).to(at::kBFloat16)));
    CHECK(at::equal(gguf.read("packed", at::kFloat), at::arange(-16.f, 16.f) * 0.5));
  }
  GgufBytes wide = small();
  wide.alignment = 128;
  wide.key("general.alignment", kU32, bytes_of(uint32_t{128}));
  wide.tensors[1] = {};
  wide.tensors.pop_back();
  CHECK(at::equal(read(scratch, wide, "plain"), at::arange(6.f).view({2, 3})));
}

TEST_CASE("tensors stored in the asked dtype are the file's memory and outlive everything else") {
  const Scratch scratch;
  at::Tensor a;
  {
    const Gguf gguf = Gguf::open(scratch.write("x.gguf", small().file()));
    a = gguf.read("plain", at::kFloat);
    CHECK(a.const_data_ptr() == gguf.read("plain", at::kFloat).const_data_ptr());
  }
  CHECK(at::equal(a, at::arange(6.f).view({2, 3})));
}

TEST_CASE("plain types of 16 bits") {
  const Scratch scratch;
  const at::Tensor values = at::tensor({1.0f, -2.5f, 65504.0f, 1e-3f});
  for (const auto& [type, dtype] : {std::pair{kTypeF16, at::kHalf}, {kTypeBf16, at::kBFloat16}}) {
    const at::Tensor stored = values.to(dtype);
    GgufBytes g = block_of(type, 4, {static_cast<const char*>(stored.const_data_ptr()), 8});
    CHECK(at::equal(read(scratch, g, "w"), stored.to(at::kFloat)));
    CHECK(at::equal(read(scratch, g, "w", dtype), stored));
  }
}

TEST_CASE("blocks of 4 and 6 bits, by hand") {
  const Scratch scratch;
  // Q4_0: every byte 0x91: the first half is (1 - 8) * 2, the second (9 - 8) * 2.
  const at::Tensor q40 = read(scratch, block_of(kTypeQ40, 32, half(2) + std::string(16, '\x91')), "w");
  CHECK(at::equal(q40, at::cat({at::full({16}, -14.f), at::full({16}, 2.f)})));

  // Q4_K: scales 1, 2, 3, 4 and 33, 18, 3, 52, offsets 5, 6, 7, 8 and 21, 6, 39, 8: the last four of both
  // take their upper bits from the first bytes.
  const int scales[] = {1, 2, 3, 4, 33, 18, 3, 52}, offsets[] = {5, 6, 7, 8, 21, 6, 39, 8};
  std::string packed(12, '\0');
  for (int i = 0; i < 4; ++i) {
    packed[i] = static_cast<char>(scales[i] | scales[i + 4] >> 4 << 6);
    packed[i + 4] = static_cast<char>(offsets[i] | offsets[i + 4] >> 4 << 6);
    packed[i + 8] = static_cast<char>((scales[i + 4] & 15) | (offsets[i + 4] & 15) << 4);
  }
  const at::Tensor q4k = read(
      scratch, block_of(kTypeQ4K, 256, half(0.5f) + half(0.25f) + packed + std::string(128, '\x73')), "w");
  for (int group = 0; group < 8; ++group)
    CHECK(
        (q4k.narrow(0, 32 * group, 32) == 0.5f * static_cast<float>(scales[group]) * (group % 2 ? 7.f : 3.f) -
                                              0.25f * static_cast<float>(offsets[group]))
            .all()
            .item<bool>());

  // Q6_K: low bits 5 in the low halves and 10 in the high ones, upper bits 0, 1, 2, 3, scales -8 to 7.
  std::string q6(128, '\xa5');
  q6 += std::string(64, '\xe4');
  for (int i = -8; i < 8; ++i) q6 += static_cast<char>(i);
  const at::Tensor q6k = read(scratch, block_of(kTypeQ6K, 256, q6 + half(2)), "w");
  const int values[] = {5, 5 + 16, 10 + 32, 10 + 48};
  for (int group = 0; group < 16; ++group)
    CHECK(
        (q6k.narrow(0, 16 * group, 16) == static_cast<float>(2 * (group - 8) * (values[group / 2 % 4] - 32)))
            .all()
            .item<bool>());
}

TEST_CASE("scales that are no numbers are errors that name the tensor") {
  const Scratch scratch;
  const std::string nan = half(std::numeric_limits<float>::quiet_NaN()), inf = half(1e9f);
  const auto refused = [&](const GgufBytes& g) {
    const std::string error = error_of([&] { read(scratch, g, "w"); });
    check_mentions(error, "x.gguf: tensor 'w': block 0 has a scale that is not a finite number");
  };
  refused(block_of(kTypeQ80, 32, nan + std::string(32, '\1')));
  refused(block_of(kTypeQ40, 32, inf + std::string(16, '\1')));
  refused(block_of(kTypeQ4K, 256, half(1) + nan + std::string(140, '\1')));
  refused(block_of(kTypeQ6K, 256, std::string(208, '\1') + inf));
}

TEST_CASE("damaged and hostile GGUF files are errors that name the problem") {
  const Scratch scratch;
  const auto refused = [&](const std::string& bytes, const std::string& expected) {
    const auto path = scratch.write("x.gguf", bytes);
    const std::string error = error_of([&] { Gguf::open(path); });
    check_mentions(error, expected);
    check_mentions(error, "x.gguf");
  };
  const auto with = [&](const std::function<void(GgufBytes&)>& change, const std::string& expected) {
    GgufBytes g = small();
    change(g);
    refused(g.file(), expected);
  };
  const uint64_t huge = ~uint64_t{0};

  refused("", "not a GGUF file");
  with([](GgufBytes& g) { g.magic = "GGML"; }, "not a GGUF file");
  with([](GgufBytes& g) { g.version = 1; }, "version 1");
  with([](GgufBytes& g) { g.version = 0x03000000; }, "big-endian");
  for (const uint64_t count : {uint64_t{1} << 19, uint64_t{1} << 60, huge}) {
    refused(small().header(count, 7), "tensors");
    refused(small().header(2, count), "metadata keys");
  }
  with([&](GgufBytes& g) { g.keys[0] = bytes_of(huge) + "x"; }, "a metadata key at byte 24 would have");
  with([&](GgufBytes& g) { g.key("x", kText, bytes_of(huge)); }, "a text at byte");
  with([&](GgufBytes& g) { g.key("x", kText, bytes_of(uint64_t{1} << 20)); }, "truncated");
  with([&](GgufBytes& g) { g.key("x", kList, bytes_of(kU8) + bytes_of(huge)); }, "items");
  with([&](GgufBytes& g) { g.key("x", kList, bytes_of(kU8) + bytes_of(uint64_t{1} << 23)); }, "do not fit");
  with([&](GgufBytes& g) { g.key("x", kList, bytes_of(kList) + bytes_of(uint64_t{1})); }, "a list of lists");
  with([&](GgufBytes& g) { g.key("x", kList, bytes_of(uint32_t{99}) + bytes_of(uint64_t{1})); },
       "unknown value type 99");
  with([](GgufBytes& g) { g.key("x", 13, ""); }, "unknown value type 13");
  with([](GgufBytes& g) { g.key("x", kBool, "\2"); }, "a bool stored as 2");
  with([](GgufBytes& g) { g.key("eps", kBool, "\1"); }, "metadata 'eps' is there twice");
  with([](GgufBytes& g) { g.key("split.count", kU32, bytes_of(uint32_t{3})); },
       "first part of 3, but not named so");
  with([](GgufBytes& g) { g.key("split.count", kText, text_bytes("3")); }, "'split.count' is no number");
  for (const uint32_t alignment : {0u, 3u, ~0u})
    with([&](GgufBytes& g) { g.key("general.alignment", kU32, bytes_of(alignment)); }, "power of two");
  with([](GgufBytes& g) { g.key("general.alignment", kText, text_bytes("32")); }, "power of two");

  const auto tensor = [&](const std::vector<uint64_t>& sizes, uint32_t type, uint64_t offset,
                          const std::string& expected) {
    with([&](GgufBytes& g) { g.tensor("bad", sizes, type, offset); }, expected);
  };
  tensor({}, kTypeF32, 96, "0 dimensions");
  tensor({1, 1, 1, 1, 1}, kTypeF32, 96, "5 dimensions");
  tensor({0}, kTypeF32, 96, "has the size 0");
  tensor({huge}, kTypeF32, 96, "has the size");
  tensor({uint64_t{1} << 40, uint64_t{1} << 40}, kTypeF32, 96, "too large");
  tensor({uint64_t{1} << 30, uint64_t{1} << 30}, kTypeF32, 0, "truncated");
  tensor({1}, 99, 96, "type number 99");
  tensor({33}, kTypeQ80, 96, "multiple of 32 values");
  tensor({255}, kTypeQ6K, 96, "multiple of 256 values");
  tensor({1}, kTypeF32, 4, "no multiple of 32");
  tensor({1}, kTypeF32, huge - 31, "truncated");
  tensor({1}, kTypeF32, 1 << 20, "truncated");
  tensor({1}, kTypeF32, 32, "overlap");
  tensor({8}, kTypeF32, 0, "overlap");
  with([](GgufBytes& g) { g.tensors.push_back(g.tensors[0]); }, "tensor 'plain' is there twice");
  with([&](GgufBytes& g) { g.tensor(std::string(2000, 'n'), {1}, kTypeF32, 96); }, "a tensor's name");
}

TEST_CASE("a GGUF file cut anywhere or with any byte changed is an error or another file, never a crash") {
  const Scratch scratch;
  const std::string whole = small().file();
  for (size_t length = 0; length < whole.size(); ++length) {
    const auto path = scratch.write("x.gguf", whole.substr(0, length));
    CHECK_MESSAGE(error_of([&] { Gguf::open(path); }) != "", length);
  }
  for (size_t at = 0; at < whole.size(); ++at)
    for (const char byte : {'\0', '\x7f', '\xff'}) {
      std::string changed = whole;
      changed[at] = byte;
      const auto path = scratch.write("x.gguf", changed);
      error_of([&] {
        const Gguf gguf = Gguf::open(path);
        for (const auto& [name, entry] : gguf.entries()) gguf.read(name, at::kFloat).sum();
      });
    }
}
