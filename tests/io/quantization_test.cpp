#include "glimpse/io/quantization.h"

#include "glimpse/io/packed_layer.h"
#include "glimpse/io/safetensors.h"
#include "io/scratch.h"

using namespace glimpse;
using namespace glimpse::test;
using nlohmann::json;
using Tensors = std::map<std::string, at::Tensor>;

namespace {

json awq_config(int64_t group = 8) {
  return {{"quant_method", "awq"}, {"bits", 4}, {"group_size", group}, {"version", "GEMM"}};
}

json gptq_config(int64_t group = 8, const char* format = "gptq") {
  return {{"quant_method", "gptq"}, {"bits", 4}, {"group_size", group}, {"checkpoint_format", format}};
}

json fp8_config(int64_t rows = 2, int64_t columns = 3) {
  return {{"quant_method", "fp8"}, {"fmt", "e4m3"}, {"weight_block_size", {rows, columns}}};
}

at::Tensor words(const std::vector<int64_t>& values, at::IntArrayRef shape) {
  const at::Tensor wide = at::tensor(values, at::kLong);
  return at::where(wide > INT32_MAX, wide - (int64_t{1} << 32), wide).to(at::kInt).view(shape);
}

at::Tensor halves(const std::vector<double>& values, at::IntArrayRef shape) {
  return at::tensor(values, at::kDouble).to(at::kHalf).view(shape);
}

/// A layer "a" of 8 outputs and 16 inputs in two groups; AWQ.
Tensors awq_layer() {
  return {{"a.qweight", at::full({16, 1}, 0x76543210, at::kInt)},
          {"a.qzeros", words({0x11111111, 0}, {2, 1})},
          {"a.scales", at::ones({2, 8}, at::kHalf)},
          {"a.bias", at::ones({8}, at::kHalf)}};
}

/// The same in GPTQ's layout.
Tensors gptq_layer() {
  return {{"a.qweight", at::full({2, 8}, 0x76543210, at::kInt)},
          {"a.qzeros", words({0x11111111, 0}, {2, 1})},
          {"a.scales", at::ones({2, 8}, at::kHalf)}};
}

Tensors fp8_layer() {
  return {{"a.weight", at::full({4, 7}, 1.5, at::kFloat).to(at::kFloat8_e4m3fn)},
          {"a.weight_scale_inv", at::arange(1, 7, at::kFloat).view({2, 3})}};
}

class Checkpoint {
 public:
  Checkpoint(const Tensors& tensors, const json& quantization) {
    std::filesystem::remove(dir_ / "model.safetensors");
    save_safetensors(dir_ / "model.safetensors", tensors);
    if (!quantization.is_null()) config_["quantization_config"] = quantization;
  }
  Weights open() const { return open_quantized(dir_ / ".", Quantization::of(config_, "config.json"), {}); }
  at::Tensor weight(at::ScalarType dtype = at::kFloat) const {
    const Weights weights = open();
    return weights.take("a.weight", weights.shape("a.weight"), dtype);
  }

 private:
  Scratch dir_;
  json config_ = json::object();
};

at::Tensor weight_of(const Tensors& tensors, const json& quantization) {
  return Checkpoint(tensors, quantization).weight();
}

/// What reading the layer after a change is answered with.
std::string error_after(Tensors tensors, const json& quantization, const std::string& name,
                        const at::Tensor& changed) {
  if (changed.defined())
    tensors[name] = changed;
  else
    tensors.erase(name);
  return error_of([&] { weight_of(tensors, quantization); });
}

std::string config_error(const json& quantization) {
  return error_of([&] { Quantization::of({{"quantization_config", quantization}}, "x/config.json"); });
}

}  // namespace

TEST_CASE("AWQ: eight outputs to a word, in the order 0 2 4 6 1 3 5 7") {
  const at::Tensor weight = weight_of(awq_layer(), awq_config());
  CHECK(weight.sizes() == at::IntArrayRef({8, 16}));
  // Four bits hold their place's number, so that output 2 has the step 1, output 1 the step 4.
  const std::vector<float> steps = {0, 4, 1, 5, 2, 6, 3, 7};
  for (int64_t o = 0; o < 8; ++o) {
    CHECK(weight[o][0].item<float>() == steps[o] - 1);
    CHECK(weight[o][7].item<float>() == steps[o] - 1);
    CHECK(weight[o][8].item<float>() == steps[o]);
  }
}

TEST_CASE("AWQ: scales are each output's and group's, and zeros have the words' order") {
  Tensors layer = awq_layer();
  layer["a.scales"] = halves({1, 2, 3, 4, 5, 6, 7, 8, .5, .5, .5, .5, .5, .5, .5, .25}, {2, 8});
  layer["a.qzeros"] = words({0xf0000000, 0x00000020}, {2, 1});
  const at::Tensor weight = weight_of(layer, awq_config());
  CHECK(weight[1][0].item<float>() == 4 * 2);
  CHECK(weight[7][0].item<float>() == (7 - 15) * 8);
  CHECK(weight[2][8].item<float>() == (1 - 2) * .5f);
  CHECK(weight[7][15].item<float>() == 7 * .25f);
}

TEST_CASE("GPTQ: eight inputs to a word in order; the first format's zeros are less one") {
  const at::Tensor second = weight_of(gptq_layer(), gptq_config(8, "gptq_v2"));
  CHECK(second.sizes() == at::IntArrayRef({8, 16}));
  for (int64_t i = 0; i < 8; ++i) {
    CHECK(second[5][i].item<float>() == static_cast<float>(i - 1));
    CHECK(second[5][8 + i].item<float>() == static_cast<float>(i));
  }
  CHECK(at::equal(weight_of(gptq_layer(), gptq_config()), second - 1));

  // Zeros 0, 5, 0 ... were written as one number less 0x11111111, so that the borrow is in it.
  Tensors layer = gptq_layer();
  layer["a.qzeros"] = words({0x50 - 0x11111111ll + (1ll << 32), 0}, {2, 1});
  const at::Tensor borrowed = weight_of(layer, gptq_config());
  CHECK(borrowed[0][0].item<float>() == 0);
  CHECK(borrowed[1][0].item<float>() == -5);
  CHECK(borrowed[2][0].item<float>() == 0);
}

TEST_CASE("GPTQ: g_idx says each input's group, and 8 bits are four to a word") {
  Tensors layer = gptq_layer();
  layer["a.g_idx"] = at::tensor({0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1}, at::kInt);
  json config = gptq_config(8, "gptq_v2");
  config["desc_act"] = true;
  const at::Tensor weight = weight_of(layer, config);
  CHECK(weight[3][2].item<float>() == 1);
  CHECK(weight[3][3].item<float>() == 3);
  CHECK(Quantization::of({{"quantization_config", config}}, "").text() ==
        "GPTQ, 4 bits, groups of 8, inputs in any order");

  const Tensors wide = {{"a.qweight", words({0xff020100, 0xff020100, 0xff020100, 0xff020100}, {1, 4})},
                        {"a.qzeros", words({0x00000080}, {1, 1})},
                        {"a.scales", at::ones({1, 4}, at::kFloat)}};
  json eight = gptq_config(-1, "gptq_v2");
  eight["bits"] = 8;
  CHECK(at::equal(weight_of(wide, eight)[0], at::tensor({-128.f, -127.f, -126.f, 127.f})));
  CHECK(at::equal(weight_of(wide, eight)[1], at::tensor({0.f, 1.f, 2.f, 255.f})));
}

TEST_CASE(
    "packed layers are read row by row as they are read whole, and as steps where these are in groups") {
  at::manual_seed(6);
  const auto random = [](int64_t rows, int64_t columns) {
    return at::randint(INT32_MIN, INT32_MAX, {rows, columns}, at::kLong).to(at::kInt);
  };
  const at::Tensor scales = (at::rand({4, 24}) + 0.1).to(at::kHalf);
  const Tensors awq = {{"a.qweight", random(32, 3)}, {"a.qzeros", random(4, 3)}, {"a.scales", scales}},
                gptq = {{"a.qweight", random(4, 24)}, {"a.qzeros", random(4, 3)}, {"a.scales", scales}};
  Tensors ordered = gptq, shuffled = gptq;
  ordered["a.g_idx"] = at::arange(32, at::kInt).div(8, "floor").to(at::kInt);
  shuffled["a.g_idx"] = at::arange(32, at::kInt).remainder(4).to(at::kInt);
  const Tensors eight = {{"a.qweight", random(8, 24)}, {"a.qzeros", random(4, 6)}, {"a.scales", scales}};
  json eight_config = gptq_config();
  eight_config["bits"] = 8;
  struct Case {
    const Tensors& tensors;
    json config;
    bool in_steps;
  };
  for (const Case& c :
       {Case{awq, awq_config(), true}, Case{gptq, gptq_config(), true}, Case{ordered, gptq_config(), true},
        Case{shuffled, gptq_config(), false}, Case{eight, eight_config, false}}) {
    const Checkpoint checkpoint(c.tensors, c.config);
    const Weights weights = checkpoint.open();
    const at::Tensor whole = checkpoint.weight();
    const FewBits* const few = weights.few_bits("a.weight");
    REQUIRE(few != nullptr);
    CHECK((few->steps != nullptr) == c.in_steps);
    CHECK(few->group == (c.in_steps ? 8 : 0));
    CHECK(at::equal(few->rows(0, 24), whole));
    CHECK(at::equal(few->rows(9, 5), whole.narrow(0, 9, 5)));
    if (!few->steps) continue;
    const auto [step, scale, offset] = few->steps(9, 15);
    const auto by_input = [](const at::Tensor& t) { return t.repeat_interleave(8, 1); };
    const at::Tensor values = step.to(at::kFloat) * by_input(scale) + by_input(offset);
    CHECK(at::allclose(values, whole.narrow(0, 9, 15), 1e-6, 1e-6));
    CHECK_THROWS_AS(weights.take_few_bits("a.weight", {24, 31}), Error);
  }
  const Weights plain = Checkpoint({{"a.weight", at::ones({2, 2})}}, json()).open();
  CHECK(plain.few_bits("a.weight") == nullptr);
  CHECK(plain.few_bits("b.weight") == nullptr);
}

TEST_CASE("FP8: a scale per block, the last ones not whole, or one for all") {
  const at::Tensor weight = weight_of(fp8_layer(), fp8_config());
  CHECK(weight.sizes() == at::IntArrayRef({4, 7}));
  CHECK(weight[0][2].item<float>() == 1.5f);
  CHECK(weight[1][3].item<float>() == 1.5f * 2);
  CHECK(weight[1][6].item<float>() == 1.5f * 3);
  CHECK(weight[3][6].item<float>() == 1.5f * 6);
  Tensors layer = fp8_layer();
  layer.erase("a.weight_scale_inv");
  layer["a.weight_scale"] = at::tensor(0.5);
  layer["a.input_scale"] = at::tensor(3.0);
  const at::Tensor whole = weight_of(layer, {{"quant_method", "fp8"}});
  CHECK(at::equal(whole, at::full({4, 7}, 0.75)));
  // All 254 numbers, as libtorch reads them.
  at::Tensor bytes = at::arange(256, at::kByte).view({16, 16}).clone();
  bytes[7][15] = bytes[15][15] = 0;  // not numbers
  layer["a.weight"] = bytes.view(at::kFloat8_e4m3fn);
  layer["a.weight_scale"] = at::tensor(1.0);
  CHECK(at::equal(weight_of(layer, {{"quant_method", "fp8"}}), layer["a.weight"].to(at::kFloat)));
}

TEST_CASE("packed layers are plain weights to their users; the rest stays as it is") {
  const Checkpoint checkpoint(awq_layer(), awq_config());
  const Weights weights = checkpoint.open();
  CHECK(weights.names() == std::vector<std::string>{"a.bias", "a.weight"});
  CHECK(weights.stored_as("a.weight") == "AWQ 4 bits");
  CHECK(weights.bytes("a.weight") == 16 * 4 + 2 * 4 + 2 * 8 * 2);
  CHECK(weights.name_in_file("a.weight") == "a.weight");
  CHECK((weights.raw("a.bias").scalar_type() == at::kHalf));
  CHECK(at::equal(checkpoint.weight(at::kBFloat16), checkpoint.weight().to(at::kBFloat16)));
  weights.take("a.weight", {8, 16}, at::kBFloat16);
  weights.take("a.bias", {8}, at::kFloat);
  weights.expect_all_taken();
  CHECK(error_of([&] {
          weights.take("a.weight", {16, 8}, at::kFloat);
        }).find("[8, 16]") != std::string::npos);
}

TEST_CASE("layers that do not fit together are refused before anything is read") {
  const auto awq = [](const std::string& name, const at::Tensor& changed) {
    const std::string error = error_after(awq_layer(), awq_config(), name, changed);
    check_mentions(error, "a");
    return error;
  };
  check_mentions(awq("a.qzeros", {}), "'a.qzeros' is missing");
  check_mentions(awq("a.scales", {}), "'a.scales' is missing");
  check_mentions(awq("a.qzeros", at::zeros({1, 1}, at::kInt)), "qzeros has shape [1, 1]; expected [2, 1]");
  check_mentions(awq("a.qzeros", at::zeros({2, 1}, at::kLong)), "qzeros has dtype Long; expected int32");
  check_mentions(awq("a.scales", at::ones({2, 7}, at::kHalf)), "scales has shape [2, 7]; expected [2, 8]");
  check_mentions(awq("a.scales", at::ones({2, 8}, at::kInt)), "scales has dtype Int; expected float16");
  check_mentions(awq("a.qweight", at::zeros({16}, at::kInt)), "qweight has shape [16]; expected a matrix");
  check_mentions(awq("a.qweight", at::zeros({16, 1}, at::kHalf)), "expected a matrix of int32");
  check_mentions(awq("a.qweight", at::zeros({0, 1}, at::kInt)), "qweight has shape [0, 1]");
  check_mentions(awq("a.qweight", at::zeros({int64_t{1} << 59, 0}, at::kInt)), "expected a matrix");
  check_mentions(awq("a.weight", at::zeros({8, 16}, at::kHalf)), "'a.weight' is there plain and packed");
  // Another group size than the layer was made with.
  check_mentions(error_of([] { weight_of(awq_layer(), awq_config(16)); }), "expected [1, 1]");
  check_mentions(error_of([] { weight_of(awq_layer(), awq_config(-1)); }), "expected [1, 1]");
  check_mentions(error_of([] { weight_of(gptq_layer(), gptq_config(4)); }), "expected [4, 1]");

  const auto gptq = [](const at::Tensor& order, bool shuffled = true) {
    json config = gptq_config();
    config["desc_act"] = shuffled;
    return error_after(gptq_layer(), config, "a.g_idx", order);
  };
  check_mentions(gptq({}), "'a.g_idx' is missing");
  CHECK(gptq({}, false).empty());
  for (const int bad : {-1, 2, INT32_MAX, INT32_MIN}) {
    const at::Tensor order = at::zeros({16}, at::kInt);
    order[9] = bad;
    check_mentions(gptq(order, false), concat("g_idx has ", bad, " at place 9, but there are 2 groups"));
  }
  check_mentions(gptq(at::zeros({15}, at::kInt)), "g_idx has shape [15]; expected [16]");
  check_mentions(gptq(at::zeros({16}, at::kLong)), "g_idx has dtype Long");

  const auto fp8 = [](const at::Tensor& scales) {
    return error_after(fp8_layer(), fp8_config(), "a.weight_scale_inv", scales);
  };
  check_mentions(fp8({}), "'a.weight_scale' is missing");
  check_mentions(fp8(at::ones({2, 2})), "expected [2, 3], one per block of 2 x 3");
  check_mentions(fp8(at::ones({2, 3}, at::kInt)), "dtype Int");
  check_mentions(
      error_after(fp8_layer(), fp8_config(), "a.weight", at::ones({28}, at::kFloat).to(at::kFloat8_e4m3fn)),
      "expected a matrix");
}

TEST_CASE("scales must be numbers above 0, and weights numbers") {
  for (const double bad : {0.0, -1.0, std::nan(""), static_cast<double>(INFINITY)}) {
    at::Tensor scales = at::ones({2, 8}, at::kHalf);
    scales[1][3] = bad;
    check_mentions(error_after(awq_layer(), awq_config(), "a.scales", scales), "a: a scale is not finite");
    check_mentions(error_after(gptq_layer(), gptq_config(), "a.scales", scales), "a scale is not finite");
    at::Tensor blocks = at::ones({2, 3});
    blocks[1][2] = bad;
    check_mentions(error_after(fp8_layer(), fp8_config(), "a.weight_scale_inv", blocks),
                   "a.weight: a scale is not finite or not above 0");
  }
  at::Tensor bytes = at::zeros({4, 7}, at::kByte);
  bytes[3][6] = 0xff;
  check_mentions(error_after(fp8_layer(), fp8_config(), "a.weight", bytes.view(at::kFloat8_e4m3fn)),
                 "a weight is not a number");
}

TEST_CASE("what is not read is refused by its name") {
  const auto with = [](json config, const char* key, const json& value) {
    config[key] = value;
    return config_error(config);
  };
  check_mentions(config_error({{"quant_method", "bitsandbytes"}}),
                 "x/config.json: quantization_config: quant_method 'bitsandbytes' is not supported (known: "
                 "glimpse, awq, gptq, fp8)");
  check_mentions(config_error({{"load_in_4bit", true}}), "quant_method ''");
  check_mentions(config_error(7), "quantization_config has an unexpected value 7");
  check_mentions(config_error({{"quant_method", 4}}), "quant_method 4");
  check_mentions(with(awq_config(), "bits", 3), "bits 3 is not supported; expected 4");
  check_mentions(with(awq_config(), "version", "gemv"), "version \"gemv\" is not supported");
  check_mentions(with(awq_config(), "zero_point", false), "zero_point false is not supported");
  check_mentions(with(awq_config(), "group_size", 0), "group_size 0");
  check_mentions(with(awq_config(), "group_size", "many"), "group_size \"many\"");
  check_mentions(with(gptq_config(), "bits", 2), "bits 2 is not supported; expected 4 or 8");
  check_mentions(with(gptq_config(), "checkpoint_format", "marlin"), "checkpoint_format \"marlin\"");
  check_mentions(with(gptq_config(), "is_marlin_format", true), "is_marlin_format true");
  check_mentions(with(fp8_config(), "fmt", "e5m2"), "fmt \"e5m2\"");
  check_mentions(with(fp8_config(), "weight_block_size", {128}), "weight_block_size [128]");
  check_mentions(with(fp8_config(), "weight_block_size", {128, 0}), "weight_block_size [128,0]");
  check_mentions(error_of([] {
                   Quantization::of({{"compression_config", json::object()}}, "config.json");
                 }),
                 "compression_config is not supported");
  CHECK(Quantization::of(json::object(), "").text().empty());
  CHECK(Quantization::of({{"text_config", {{"quantization_config", awq_config()}}}}, "").text() ==
        "AWQ, 4 bits, groups of 8");

  check_mentions(error_of([] { weight_of(awq_layer(), json()); }), "'a.qweight' (Int) is quantised, but");
  check_mentions(error_of([] { weight_of(fp8_layer(), json()); }), "'a.weight' (Float8_e4m3fn) is quantised");
  check_mentions(error_of([] { weight_of(awq_layer(), fp8_config()); }), "quantization_config says FP8");
  check_mentions(error_of([] { weight_of(fp8_layer(), awq_config()); }), "no quantization_config of fp8");
}
