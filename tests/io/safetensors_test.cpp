#include "glimpse/io/safetensors.h"

#include <random>

#include "io/scratch.h"

using namespace glimpse;
using namespace glimpse::test;

namespace {

/// A file with the given header text and `data` bytes after it.
std::string file_of(const std::string& header, size_t data) {
  std::string bytes;
  for (size_t i = 0; i < 8; ++i) bytes.push_back(static_cast<char>(header.size() >> 8 * i));
  return bytes + header + std::string(data, '\1');
}

std::string load_error(const Scratch& scratch, const std::string& bytes) {
  const auto path = scratch.write("x.safetensors", bytes);
  return error_of([&] { load_safetensors(path); });
}

std::string one(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"a":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
}

}  // namespace

TEST_CASE("files of the safetensors library read as it reads them") {
  const auto f32 = load_safetensors(kSource / "tests/data/golden/qwen_tiny/base/model.safetensors");
  CHECK(f32.tensors.size() == 177);
  CHECK(sum_of_magnitudes(f32.tensors) == doctest::Approx(211605.47903155023).epsilon(1e-12));
  const auto bf16 = load_safetensors(kSource / "models/tiny/model/model.safetensors");
  CHECK(bf16.tensors.size() == 152);
  CHECK((bf16.tensors.at("model.embed_tokens.weight").scalar_type() == at::kBFloat16));
  CHECK(sum_of_magnitudes(bf16.tensors) == doctest::Approx(308631.2899680919).epsilon(1e-12));
}

TEST_CASE("every dtype survives saving and loading") {
  const Scratch scratch;
  std::map<std::string, at::Tensor> tensors;
  for (const auto type : {at::kBFloat16, at::kHalf, at::kFloat, at::kDouble, at::kLong, at::kInt, at::kShort,
                          at::kChar, at::kByte, at::kBool})
    tensors[c10::toString(type)] = (at::arange(15) % 7).view({3, 5}).to(type);
  tensors["scalar"] = at::scalar_tensor(2.5);
  tensors["none"] = at::empty({3, 0, 2});
  tensors["turned"] = at::arange(6.f).view({2, 3}).t();
  save_safetensors(scratch / "a.safetensors", tensors, {{"format", "pt"}, {"note", "\"quoted\" \xc3\xa4"}});
  const auto back = load_safetensors(scratch / "a.safetensors");
  CHECK(back.metadata.at("note") == "\"quoted\" \xc3\xa4");
  REQUIRE(back.tensors.size() == tensors.size());
  for (const auto& [name, tensor] : tensors) {
    CHECK((back.tensors.at(name).scalar_type() == tensor.scalar_type()));
    CHECK(at::equal(back.tensors.at(name), tensor));
  }
}

TEST_CASE("tensors alias the mapping, outlive everything else and never write to the file") {
  const Scratch scratch;
  const auto path = scratch / "a.safetensors";
  save_safetensors(path, {{"a", at::arange(4.f)}, {"b", at::arange(4.f)}});
  const std::string before = contents(path);
  at::Tensor a, b;
  {
    const auto loaded = load_safetensors(path);
    a = loaded.tensors.at("a");
    b = loaded.tensors.at("b");
  }
  // Neighbours in the file are neighbours in memory.
  CHECK(static_cast<const char*>(b.const_data_ptr()) - static_cast<const char*>(a.const_data_ptr()) == 16);
  a.fill_(7);
  CHECK(at::equal(b, at::arange(4.f)));
  CHECK(contents(path) == before);
  save_safetensors(path, {{"a", at::zeros({9})}});  // replaces the file under the mapping
  CHECK(at::equal(b, at::arange(4.f)));
}

TEST_CASE("written tensors that fill whole cache lines begin at one") {
  const Scratch scratch;
  const auto bytes = [](int64_t count) { return at::zeros({count}, at::kByte); };
  // Names of different lengths make headers of all sizes; odd sizes sort between the others by name.
  for (size_t length = 1; length <= 64; length += 9) {
    const std::map<std::string, at::Tensor> tensors = {
        {"a_odd", bytes(3)},
        {"b_packed", bytes(128)},
        {"c_odd", at::zeros({5}, at::kBFloat16)},
        {"d_scale", at::zeros({16})},
        {"e_odd", at::zeros({3, 1})},
        {"f_odd", at::zeros({1}, at::kDouble)},
        {std::string(length, 'n'), at::zeros({32, 3}, at::kBFloat16)}};
    save_safetensors(scratch / "a.safetensors", tensors);
    const auto mapped = load_safetensors(scratch / "a.safetensors").tensors;
    REQUIRE(mapped.size() == tensors.size());
    for (const auto& [name, tensor] : mapped) {
      const size_t align = tensor.nbytes() % 64 == 0 ? 64 : tensor.element_size();
      CHECK_MESSAGE(reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % align == 0, name);
    }
  }
}

TEST_CASE("offsets that are not aligned to the element size work") {
  const Scratch scratch;
  for (const std::string pad : {"", " ", "  ", "   "}) {
    const auto path = scratch.write("x.safetensors", file_of(one("F32", "[2]", "[0,8]") + pad, 8));
    const at::Tensor a = load_safetensors(path).tensors.at("a");
    CHECK(reinterpret_cast<uintptr_t>(a.const_data_ptr()) % 4 == 0);
    CHECK(a.view(at::kInt)[1].item<int>() == 0x01010101);
  }
}

TEST_CASE("damaged and hostile files are errors that name the problem") {
  const Scratch scratch;
  const auto refused = [&](const std::string& bytes, const std::string& expected) {
    const std::string error = load_error(scratch, bytes);
    check_mentions(error, expected);
    check_mentions(error, "x.safetensors");
  };
  REQUIRE(load_error(scratch, file_of(one("F32", "[2,3]", "[0,24]"), 24)) == "");
  refused("", "truncated");
  refused("1234567", "truncated");
  refused(file_of("{}", 0).substr(0, 9), "its header ends at byte 10, the file has 9");
  refused(std::string(8, '\xff') + "{}", "not a safetensors file");
  refused(file_of("{\"a\":", 0), "not valid JSON");
  refused(file_of("[]", 0), "not a JSON object");
  refused(file_of("\xff\xfe", 0), "not valid JSON");
  refused(file_of(std::string(100000, '['), 0), "nested too deeply");
  refused(file_of(one("F32", "[2,3]", "[0,24]"), 23), "truncated");
  refused(file_of(one("F32", "[2,3]", "[0,24]"), 25), "unexpected data");
  refused(file_of(one("F9", "[2,3]", "[0,24]"), 24), "unsupported dtype 'F9'");
  refused(file_of(one("F32", "[2,4]", "[0,24]"), 24), "needs 32 bytes");
  refused(file_of(one("F32", "[2,3]", "[24,0]"), 24), "needs 24 bytes");
  refused(file_of(one("F32", "[2,3]", "[8,32]"), 32), "begins at offset 8");
  refused(file_of(one("F32", "[2,-3]", "[0,24]"), 24), "non-negative");
  refused(file_of(one("F32", "[2.0,3]", "[0,24]"), 24), "non-negative");
  refused(file_of(one("F32", "[18446744073709551615]", "[0,24]"), 24), "non-negative");
  refused(file_of(one("F32", "[4294967296,4294967296]", "[0,0]"), 0), "too large");
  refused(file_of(one("F32", "[0,4611686018427387904,4611686018427387904]", "[0,0]"), 0), "too large");
  std::string ones = "[1";
  for (int i = 0; i < 64; ++i) ones += ",1";
  refused(file_of(one("U8", ones + "]", "[0,1]"), 1), "65 dimensions");
  refused(file_of(one("F32", "6", "[0,24]"), 24), "needs a dtype");
  refused(file_of(one("F32", "[6]", "[0,24,3]"), 24), "needs a dtype");
  refused(file_of(R"({"a":3})", 0), "needs a dtype");
  refused(file_of(R"({"__metadata__":{"a":3}})", 0), "not a string");
  refused(file_of(one("BOOL", "[1]", "[0,1]"), 0) + '\2', "other than 0 and 1");
  refused(
      file_of(R"({")" + std::string(2000, 'n') + R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})", 0),
      "name has 2000 bytes");
  const std::string a = R"("a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]})";
  refused(file_of("{" + a + "," + a + "}", 4), "'a' is listed twice");
  refused(file_of("{" + a + R"(,"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})", 6),
          "begins at offset 2");

  check_mentions(error_of([&] { load_safetensors(scratch / "none.safetensors"); }), "no such file");
  check_mentions(error_of([&] { load_safetensors("/dev/zero"); }), "not a regular file");
  check_mentions(error_of([&] {
                   save_safetensors(scratch / "s", {{"a", at::zeros({1}, at::kComplexFloat)}});
                 }),
                 "not supported");
}

TEST_CASE("a file with damaged bytes loads or fails cleanly") {
  const Scratch scratch;
  save_safetensors(
      scratch / "a.safetensors",
      {{"a", at::arange(4.f)}, {"b", at::ones({2, 2}, at::kBool)}, {"c", at::zeros({3}, at::kLong)}});
  const std::string good = contents(scratch / "a.safetensors");
  std::mt19937 random(1);
  int refused = 0;
  for (size_t i = 0; i < good.size(); ++i) {
    std::string bad = good;
    bad[i] = static_cast<char>(random());
    refused += !load_error(scratch, bad).empty();
    refused += !load_error(scratch, good.substr(0, i)).empty();
  }
  CHECK(refused > static_cast<int>(good.size()));
}
