#include "glimpse/io/torch_zip.h"

#include <caffe2/serialize/inline_container.h>

#include <random>

#include "glimpse/io/pickle.h"
#include "io/scratch.h"

using namespace glimpse;
using namespace glimpse::test;
using Records = std::map<std::string, std::string>;

namespace {

/// Zips records as torch.save does, with PyTorch's own writer.
std::filesystem::path zip(const Scratch& scratch, const Records& records, bool compress = false) {
  const auto path = scratch / "x.pt";
  caffe2::serialize::PyTorchStreamWriter writer(path.string());
  for (const auto& [name, bytes] : records) writer.writeRecord(name, bytes.data(), bytes.size(), compress);
  writer.writeEndOfFile();
  return path;
}

// Pickle opcodes that the hostile files are written with.
std::string text(const std::string& s) {
  return concat("X", static_cast<char>(s.size()), static_cast<char>(s.size() >> 8), '\0', '\0', s);
}
std::string number(int32_t n) {
  return concat("J", std::string(reinterpret_cast<const char*>(&n), 4));
}
std::string tuple(const std::vector<int32_t>& numbers) {
  std::string code = "(";
  for (const int32_t n : numbers) code += number(n);
  return concat(code, "t");
}
std::string program(const std::string& code) {
  return concat("\x80\x02", code, ".");
}
/// {"t": value}
std::string dict(const std::string& value) {
  return program(concat("}", text("t"), value, "s"));
}
std::string storage(const std::string& type, int32_t elements) {
  return concat("(", text("storage"), "ctorch\n", type, "\n", text("0"), text("cpu"), number(elements), "tQ");
}
std::string tensor(const std::string& from, int32_t offset, const std::vector<int32_t>& sizes,
                   const std::vector<int32_t>& strides) {
  return concat("ctorch._utils\n_rebuild_tensor_v2\n(", from, number(offset), tuple(sizes), tuple(strides),
                "\x89"
                "ccollections\nOrderedDict\n)RtR");
}

const std::string kSixFloats(24, '\1');

std::string load_error(const Scratch& scratch, const std::string& pickle,
                       const std::string& bytes = kSixFloats) {
  const auto path = zip(scratch, {{"data.pkl", pickle}, {"data/0", bytes}});
  return error_of([&] { load_torch_zip(path); });
}

}  // namespace

TEST_CASE("published-style new modules read as PyTorch reads them") {
  struct Expected {
    const char* path;
    size_t tensors;
    int64_t elements;
    double magnitudes, last_le_proj;
  };
  for (const Expected& e :
       {Expected{"tests/data/golden/qwen_tiny/nm_main", 64, 141633, 18930.793559923597, 0.0930047482252121},
        Expected{"tests/data/golden/qwen_tiny/nm_multi", 71, 141604, 18748.19084134207, 0.07796614617109299},
        Expected{"models/tiny/new_modules_reference", 64, 364929, 29900.158980838954, -0.0103759765625}}) {
    const auto tensors = load_torch_zip(kSource / e.path / "new_modules_gp.pt");
    CHECK(tensors.size() == e.tensors);
    CHECK(tensors.contains("attn_fuser.layers.0.attn.q_proj.weight"));
    CHECK(tensors.contains("learnable_embeddings"));
    int64_t elements = 0;
    for (const auto& [name, t] : tensors) elements += t.numel();
    CHECK(elements == e.elements);
    CHECK(sum_of_magnitudes(tensors) == doctest::Approx(e.magnitudes).epsilon(1e-12));
    CHECK(tensors.at("le_proj.weight").flatten()[-1].item<double>() == e.last_le_proj);
  }
}

TEST_CASE("views, parameters, lists and scalars of torch.save") {
  for (const char* file : {"torch_protocol2.pt", "torch_protocol4.pt"}) {
    const auto tensors = load_torch_zip(kData / file);
    const at::Tensor whole = at::arange(24.f).view({4, 6});
    CHECK(at::equal(tensors.at("whole"), whole));
    const at::Tensor& turned = tensors.at("part.transposed");
    CHECK(at::equal(turned, whole.slice(0, 1).slice(1, 0, 6, 2).t()));
    CHECK(turned.strides() == at::IntArrayRef{2, 6});
    CHECK(turned.storage().data() == tensors.at("whole").storage().data());
    CHECK(at::equal(tensors.at("part.deep.x.y"), at::arange(5.f, 7.f)));
    CHECK((tensors.at("list.0").scalar_type() == at::kBool));
    CHECK(tensors.at("list.0")[0].item<bool>());
    CHECK(tensors.at("list.2")[0].item<int>() == -1);
    CHECK((tensors.at("module.0.num_batches_tracked").scalar_type() == at::kLong));
    CHECK(at::equal(tensors.at("module.0.running_var"), at::ones({3})));
    CHECK(tensors.at("parameter")[0][1].item<float>() == -2.f);
    CHECK((tensors.at("parameter").scalar_type() == at::kBFloat16));
    CHECK(tensors.at("empty").sizes() == at::IntArrayRef{0, 3});
    CHECK(tensors.at("double").item<double>() == 3.25);
    CHECK(tensors.size() == 13);  // the rest is no tensor
  }
}

TEST_CASE("code is refused and named, not run") {
  const Scratch scratch;
  const auto marker = scratch / "ran";
  const std::string argument = text("touch " + marker.string());
  const auto refused = [&](const std::string& pickle, const std::string& expected) {
    const std::string error = load_error(scratch, pickle);
    check_mentions(error, expected);
    check_mentions(error, "refuses to run code");
    CHECK(!std::filesystem::exists(marker));
  };
  refused(dict("cos\nsystem\n" + argument + "\x85R"), "'os.system'");
  refused(dict(text("posix") + text("system") + "\x93" + argument + "\x85R"), "'posix.system'");
  refused(dict("c__builtin__\neval\n" + argument + "\x85R"), "'__builtin__.eval'");
  refused(dict("ctorch\nload\n" + argument + "\x85R"), "'torch.load'");
  refused(dict("(" + argument + "ios\nsystem\n"), "opcode 105");                   // INST
  refused(dict("(" + argument + "o"), "opcode 111");                               // OBJ
  refused(dict("ccollections\nOrderedDict\n)\x81"), "opcode 129");                 // NEWOBJ
  refused(dict("\x82\1"), "opcode 130");                                           // EXT1
  refused(dict("\x97"), "opcode 151");                                             // NEXT_BUFFER
  refused(dict(text("x") + "}" + text("__reduce__") + argument + "sb"), "BUILD");  // state on a string
  refused(dict("ctorch\nFloatStorage\n)R"), "calls something that is no function");
  refused(dict("ccollections\nOrderedDict\n" + argument + "b"), "BUILD");
}

TEST_CASE("tensors outside their storage are refused") {
  const Scratch scratch;
  const std::string floats = storage("FloatStorage", 6);
  REQUIRE(load_error(scratch, dict(tensor(floats, 0, {2, 3}, {3, 1}))) == "");
  REQUIRE(load_error(scratch, dict(tensor(floats, 5, {1, 1}, {1000000000, 7}))) == "");
  REQUIRE(load_error(scratch, dict(tensor(floats, 6, {0, 3}, {3, 1}))) == "");
  const auto refused = [&](const std::string& value, const std::string& expected) {
    check_mentions(load_error(scratch, dict(value)), expected);
  };
  const std::string outside = "does not fit its storage of 6 elements";
  refused(tensor(floats, 1, {2, 3}, {3, 1}), outside);
  refused(tensor(floats, 6, {}, {}), outside);
  refused(tensor(floats, 7, {0}, {1}), outside);
  refused(tensor(floats, -1, {2}, {1}), outside);
  refused(tensor(floats, 5, {2, 3}, {-3, 1}), outside);
  refused(tensor(floats, 0, {2, 3}, {4, 1}), outside);
  refused(tensor(floats, 0, {2, 3}, {3}), outside);
  refused(tensor(floats, 0, {2}, {2147483647}), outside);
  refused(tensor(floats, 0, {1000000}, {0}), outside);  // expanded: huge once copied
  refused(tensor(floats, 0, {-2, 3}, {3, 1}), "negative size");
  refused(tensor(floats, 0, {2147483647, 2147483647, 2147483647}, {0, 0, 0}), "too large");
  refused(tensor(storage("FloatStorage", 7), 0, {1}, {1}), "should hold 7 elements");
  refused(tensor(storage("FloatStorage", -1), 0, {1}, {1}), "should hold -1 elements");
  refused(tensor(storage("ByteStorage", 6), 0, {1}, {1}), "but has 24 bytes");
  refused(tensor(storage("ComplexFloatStorage", 3), 0, {1}, {1}), "'torch.ComplexFloatStorage'");
  refused(tensor(number(3), 0, {1}, {1}), "expected a storage");
  refused("ctorch._utils\n_rebuild_tensor_v2\n)R", "0 arguments");
  check_mentions(load_error(scratch, dict(tensor(storage("BoolStorage", 2), 0, {2}, {1})), "\1\2"),
                 "other than 0 and 1");
}

TEST_CASE("malformed and oversized pickles are errors") {
  const Scratch scratch;
  const auto refused = [&](const std::string& pickle, const std::string& expected) {
    check_mentions(load_error(scratch, pickle), expected);
  };
  const std::string good = dict(tensor(storage("FloatStorage", 6), 0, {6}, {1}));
  for (size_t i = 0; i < good.size(); ++i) refused(good.substr(0, i), "truncated");
  refused(program(""), "0 objects at its end");
  refused(program("NN"), "2 objects at its end");
  refused(program("N"), "expected a dictionary");
  refused(program("s"), "nothing on the stack");
  refused(program("("), "nothing on the stack");
  refused(program("t"), "no mark");
  refused(program("}(Nu"), "without a value");
  refused(program("}]Ns"), "key");
  refused(program("h\5"), "nothing remembered");
  refused("\x80\x01.", "protocol 1");
  refused(program("X\xff\xff\xff\xff"), "truncated");
  refused(program("\x8a\xff" + std::string(255, 'x')), "integer of 255 bytes");
  refused(program(std::string(2'100'000, ']')), "more than 2000000 objects");
  std::string gets, deep;
  for (int i = 0; i < 2'100'000; ++i) gets += "h\1";
  refused(program(concat("Nq\1", gets)), "stack of more than");
  for (int i = 0; i < 100000; ++i) deep += concat("}", text("k"));
  refused(program(concat(deep, "N", std::string(100000, 's'))), "nested too deeply");
  // A list that holds itself, and a tower of pairs where each holds the one below twice.
  refused(program(concat("}", text("k"), "]q\1h\1as")), "nested too deeply");
  std::string tower = "]";
  for (char i = 1; i <= 28; ++i) tower += concat("q", i, "h", i, "\x86");
  refused(program(concat("}", text("k"), tower, "s")), "too large");
  const std::string six = tensor(storage("FloatStorage", 6), 0, {6}, {1});
  refused(program(concat("}", text("a.b"), six, "s", text("a"), "}", text("b"), six, "ss")),
          "two tensors are named 'a.b'");
}

TEST_CASE("archives that torch.save did not write are errors") {
  const Scratch scratch;
  const std::string good = dict(tensor(storage("FloatStorage", 6), 0, {6}, {1}));
  const auto refused = [&](const std::filesystem::path& path, const std::string& expected) {
    check_mentions(error_of([&] { load_torch_zip(path); }), expected);
  };
  CHECK(at::equal(
      load_torch_zip(zip(scratch, {{"data.pkl", good}, {"data/0", kSixFloats}, {"byteorder", "little"}}))
          .at("t")
          .view(at::kInt),
      at::full({6}, 0x01010101, at::kInt)));
  refused(zip(scratch, {{"data.pkl", good}, {"data/0", kSixFloats}, {"byteorder", "big"}}),
          "byte order 'big'");
  refused(zip(scratch, {{"data.pkl", good}}), "'data/0' is missing");
  refused(zip(scratch, {{"other.pkl", good}}), "no data.pkl");
  refused(zip(scratch, {{"data.pkl", good}, {"code/data.pkl", good}}), "two pickles");
  refused(zip(scratch, {{"data.pkl", good}, {"data/0", std::string(100000, '\0')}}, true), "compressed");
  refused(scratch.write("y.pt", good), "not a torch.save file");
  refused(scratch.write("y.pt", ""), "not a torch.save file");
  refused(scratch / "none.pt", "no such file");

  const std::string bytes = contents(zip(scratch, {{"data.pkl", good}, {"data/0", kSixFloats}}));
  std::string flipped = bytes;
  flipped[flipped.find(kSixFloats)] = 'x';
  refused(scratch.write("y.pt", flipped), "'data/0' is damaged");
  refused(scratch.write("y.pt", bytes.substr(0, bytes.size() / 2)), "damaged");
}

TEST_CASE("an archive with damaged bytes loads or fails cleanly") {
  const Scratch scratch;
  const std::string good = contents(kData / "torch_protocol2.pt");
  std::mt19937 random(1);
  int refused = 0;
  for (size_t i = 0; i < good.size(); i += 1 + random() % 16) {
    std::string bad = good;
    bad[i] = static_cast<char>(random());
    const auto path = scratch.write("x.pt", bad);
    refused += !error_of([&] { load_torch_zip(path); }).empty();
  }
  CHECK(refused > 100);
}

TEST_CASE("a pickle with damaged bytes loads or fails cleanly") {
  const at::Tensor bytes = at::ones({24}, at::kByte);
  const std::string good = dict(tensor(storage("FloatStorage", 6), 0, {2, 3}, {3, 1}));
  std::mt19937 random(1);
  int refused = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string bad = good;
    for (int changes = 0; changes < 2; ++changes) bad[random() % bad.size()] = static_cast<char>(random());
    refused += !error_of([&] {
                  const auto loaded = unpickle_tensors(
                      bad, [&](const std::string&) { return bytes; }, "fuzz");
                  CHECK(sum_of_magnitudes(loaded) >= 0);  // reads every element
                }).empty();
  }
  CHECK(refused > 10000);
  CHECK(refused < 20000);
}

TEST_CASE("what is written is read back, by name, dtype and shape") {
  const Scratch scratch;
  const at::Tensor base = at::arange(24.f).view({4, 6});
  const std::map<std::string, at::Tensor> tensors = {
      {"lone", base.slice(1, 1, 6, 2).t()},
      {"module.layers.0.weight", base.to(at::kBFloat16) / 7},
      {"module.layers.0.bias", base.select(1, 3)},
      {"module.steps", at::arange(-5, 5, at::kLong)},
      {"other.empty", at::zeros({0, 3})},
      {"other.flags", at::tensor({1, 0, 1}, at::kInt).to(at::kBool)},
      {"other.half", at::full({}, 0.1, at::kHalf)},
      {"other.leaf", at::full({1}, 3.0, at::TensorOptions(at::kDouble).requires_grad(true))}};
  save_torch_zip(scratch / "new.pt", tensors, {"other", "none"});
  const auto read = load_torch_zip(scratch / "new.pt");
  REQUIRE(read.size() == tensors.size());
  for (const auto& [name, tensor] : tensors) {
    CAPTURE(name);
    REQUIRE(read.contains(name));
    CHECK((read.at(name).scalar_type() == tensor.scalar_type()));
    CHECK(at::equal(read.at(name), tensor));
  }
  CHECK(std::distance(std::filesystem::directory_iterator(scratch / ""), {}) == 1);
}

TEST_CASE("a published file written again holds the same tensors, aligned as torch.save aligns them") {
  const Scratch scratch;
  const auto published = load_torch_zip(kSource / "tests/data/golden/qwen_tiny/nm_main/new_modules_gp.pt");
  save_torch_zip(scratch / "again.pt", published);
  const auto again = load_torch_zip(scratch / "again.pt");
  REQUIRE(again.size() == published.size());
  for (const auto& [name, tensor] : published) CHECK(at::equal(again.at(name), tensor));

  caffe2::serialize::PyTorchStreamReader reader((scratch / "again.pt").string());
  int storages = 0;
  for (const std::string& record : reader.getAllRecords()) {
    if (!record.starts_with("data/")) continue;
    CHECK(reader.getRecordOffset(record) % 64 == 0);
    ++storages;
  }
  CHECK(storages == 64);
}

TEST_CASE("tensors that cannot be written are errors and leave the file as it was") {
  const Scratch scratch;
  const auto path = scratch.write("old.pt", "old");
  const auto refused = [&](const std::map<std::string, at::Tensor>& tensors, const std::string& expected) {
    check_mentions(error_of([&] { save_torch_zip(path, tensors); }), expected);
    CHECK(contents(path) == "old");
  };
  const at::Tensor one = at::ones({1});
  refused({{"x", at::ones({1}, at::kComplexFloat)}}, "dtype ComplexFloat is not supported");
  refused({{"a", one}, {"a.b", one}}, "'a' to");
  refused({{"", one}}, "the name has 0 bytes");
  refused({{std::string(2000, 'x'), one}}, "the name has 2000 bytes");
  check_mentions(error_of([&] { save_torch_zip(scratch / "none/x.pt", {{"x", one}}); }), "cannot write");
}
