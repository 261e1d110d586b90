#include "glimpse/io/checkpoint.h"

#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "glimpse/io/adapter.h"
#include "glimpse/io/safetensors.h"
#include "io/scratch.h"

using namespace glimpse;
using namespace glimpse::test;
namespace fs = std::filesystem;
using Tensors = std::map<std::string, at::Tensor>;

namespace {

/// Sets an environment variable for as long as this lives; "" unsets it.
class Environment {
 public:
  Environment(const char* name, const std::string& value) : name_(name) {
    if (const char* old = std::getenv(name)) old_ = old;
    set(value);
  }
  ~Environment() { set(old_); }

 private:
  void set(const std::string& value) const {
    value.empty() ? ::unsetenv(name_) : ::setenv(name_, value.c_str(), 1);
  }
  const char* name_;
  std::string old_;
};

/// Writes an adapter directory of the given tensors and config (merged over a plain LoRA of rank 2, alpha 6).
fs::path write_adapter(const Scratch& scratch, const Tensors& tensors, const nlohmann::json& config = {}) {
  nlohmann::json whole = {{"peft_type", "LORA"}, {"r", 2}, {"lora_alpha", 6}};
  if (!config.is_null()) whole.merge_patch(config);
  const fs::path dir = scratch.write("adapter/adapter_config.json", whole.dump()).parent_path();
  save_safetensors(dir / "adapter_model.safetensors", tensors);
  return dir;
}

const at::Tensor kA = at::arange(6.f).view({2, 3}) - 2, kB = at::arange(8.f).view({4, 2}) / 4;

Tensors lora(const std::string& module, const std::string& adapter_name = "") {
  const std::string key = "base_model.model." + module;
  return {{key + ".lora_A." + adapter_name + "weight", kA}, {key + ".lora_B." + adapter_name + "weight", kB}};
}

}  // namespace

TEST_CASE("models are found as directories or in the hub cache") {
  const Scratch scratch;
  const Environment home("HOME", scratch / "home"), xdg("XDG_CACHE_HOME", ""), hf_home("HF_HOME", ""),
      hub_cache("HF_HUB_CACHE", "");
  const auto add = [&](const std::string& cache, const std::string& sha) {
    scratch.write(cache + "/models--org--net/refs/main", sha);
    return scratch.write(cache + "/models--org--net/snapshots/" + sha + "/config.json", "{}").parent_path();
  };
  const std::string missing = error_of([] { resolve_model_dir("org/net"); });
  check_mentions(missing, scratch / "home/.cache/huggingface/hub/models--org--net");
  check_mentions(missing, "huggingface-cli download org/net");

  const fs::path in_home = add("home/.cache/huggingface/hub", "abc1"), in_hf_home = add("hf/hub", "abc2"),
                 in_cache = add("cache", "abc3");
  CHECK(resolve_model_dir("org/net") == in_home);
  const Environment with_home("HF_HOME", scratch / "hf");
  CHECK(resolve_model_dir("org/net") == in_hf_home);
  const Environment with_cache("HF_HUB_CACHE", scratch / "cache");
  CHECK(resolve_model_dir("org/net") == in_cache);
  CHECK(resolve_model_dir(in_home) == in_home);

  const auto fails = [](const std::string& name, const std::string& expected) {
    check_mentions(error_of([&] { resolve_model_dir(name); }), expected);
  };
  scratch.write("cache/models--org--net/refs/main", "gone");
  fails("org/net", "missing snapshot 'gone'");
  scratch.write("cache/models--org--net/refs/main", "../../outside");
  scratch.write("cache/outside/config.json", "{}");
  fails("org/net", "not found");
  fails("org/../net", "no hub id");
  fails("../net", "no hub id");
  fails("", "no model given");
  fails(in_home / "config.json", "is a file");
}

TEST_CASE("JSON errors name the file and the place") {
  const Scratch scratch;
  CHECK(read_json(scratch.write("a.json", R"({"a": [1, "\u00e4"]})"))["a"][1] == "\xc3\xa4");
  const std::string error = error_of([&] { read_json(scratch.write("b.json", "{\n\"a\": 1,,\n}")); });
  check_mentions(error, "b.json");
  check_mentions(error, "line 2");
  check_mentions(error_of([&] { read_json(scratch.write("c.json", std::string(1000000, '['))); }),
                 "nested deeper");
  check_mentions(error_of([&] { read_json(scratch / "none.json"); }), "no such file");
}

TEST_CASE("weights are taken by canonical name, shape, dtype and device") {
  const Scratch scratch;
  save_safetensors(scratch / "model.safetensors", {{"old.a", at::arange(6.f).view({2, 3})},
                                                   {"old.b", at::ones({2}, at::kBFloat16)},
                                                   {"old.n", at::ones({2}, at::kInt)}});
  const auto rename = [](std::string_view name) { return "new" + std::string(name.substr(3)); };
  const Weights weights = Weights::open(scratch / "", rename);
  CHECK(weights.names() == std::vector<std::string>{"new.a", "new.b", "new.n"});
  CHECK(weights.contains("new.a"));
  CHECK(!weights.contains("old.a"));
  CHECK(weights.bytes() == 24 + 4 + 8);

  const auto fails = [&](const std::string& name, at::IntArrayRef shape, at::ScalarType dtype,
                         const std::vector<std::string>& expected) {
    const std::string error = error_of([&] { weights.take(name, shape, dtype); });
    for (const auto& part : expected) check_mentions(error, part);
  };
  fails("new.a", {3, 2}, at::kFloat, {"'new.a'", "model.safetensors", "[2, 3]", "[3, 2]"});
  fails("new.aa", {2, 3}, at::kFloat, {"'new.aa' is missing", "did you mean 'new.a'?"});
  fails("new.n", {2}, at::kFloat, {"dtype Int", "expected Float"});
  check_mentions(error_of([&] { weights.expect_all_taken(); }), "3 tensors");

  const at::Tensor same = weights.take("new.a", {2, 3}, at::kFloat);
  CHECK(same.data_ptr() == weights.raw("new.a").data_ptr());
  CHECK((weights.take("new.b", {2}, at::kDouble).scalar_type() == at::kDouble));
  CHECK((weights.take("new.b", {2}, at::TensorOptions()).scalar_type() == at::kBFloat16));
  check_mentions(error_of([&] { weights.expect_all_taken(); }),
                 "1 tensors that the model does not know:\n  new.n [2]");
  weights.expect_all_taken([](std::string_view name) { return name == "new.n"; });

  check_mentions(error_of([&] { Weights::open(scratch / "", [](std::string_view) { return "same"; }); }),
                 "is a second 'same'");
  check_mentions(error_of([&] { Weights::open(scratch / "none"); }), "none");
  check_mentions(error_of([&] { Weights::open(scratch.write("dir/x.txt", "").parent_path()); }),
                 "no weights in");
  check_mentions(error_of([&] { Weights::open(scratch / "dir/x.txt"); }), "expected a .safetensors");
}

TEST_CASE("new modules open as weights") {
  const Weights weights = Weights::open(kSource / "models/tiny/new_modules/new_modules_gp.pt");
  CHECK(weights.take("le_proj.weight", {256, 256}, at::kFloat).is_contiguous());
  const Weights views = Weights::open(kData / "torch_protocol2.pt");
  CHECK(views.take("part.transposed", {3, 3}, at::kFloat).is_contiguous());
}

TEST_CASE("sharded checkpoints") {
  const Scratch scratch;
  save_safetensors(scratch / "one.safetensors", {{"a", at::ones({1})}, {"b", at::ones({2})}});
  save_safetensors(scratch / "two.safetensors", {{"c", at::ones({3})}});
  const auto open = [&](const nlohmann::json& map) {
    scratch.write("model.safetensors.index.json", nlohmann::json{{"weight_map", map}}.dump());
    return Weights::open(scratch / "");
  };
  const nlohmann::json good = {{"a", "one.safetensors"}, {"b", "one.safetensors"}, {"c", "two.safetensors"}};
  CHECK(open(good).raw("c").numel() == 3);
  CHECK(Weights::open(scratch / "model.safetensors.index.json").names().size() == 3);
  const auto fails = [&](const nlohmann::json& map, const std::string& expected) {
    check_mentions(error_of([&] { open(map); }), expected);
  };
  const auto with = [&](const char* name, const nlohmann::json& shard) {
    nlohmann::json map = good;
    map[name] = shard;
    return map;
  };
  fails(with("d", "two.safetensors"), "tensor 'd' is not in");
  fails(with("a", "two.safetensors"), "tensor 'a' is not in");
  fails(with("d", "three.safetensors"), "three.safetensors is missing");
  fails(with("d", "../two.safetensors"), "not a plain file name");
  fails(with("d", "/etc/passwd"), "not a plain file name");
  fails(with("d", ".."), "not a plain file name");
  fails(with("d", 3), "not a file name");
  fails(3, "weight_map");
  save_safetensors(scratch / "two.safetensors", {{"c", at::ones({3})}, {"a", at::ones({1})}});
  fails(good, "is a second 'a'");
}

TEST_CASE("adapters merge as PEFT merges them") {
  for (const char* name : {"adapter_plain", "adapter_rich"}) {
    Weights weights = Weights::open(kData / name / "base.safetensors");
    weights.merge_adapter(kData / name);
    const auto expected = load_safetensors(kData / name / "merged.safetensors").tensors;
    const auto base = load_safetensors(kData / name / "base.safetensors").tensors;
    REQUIRE(weights.names().size() == expected.size());
    for (const auto& [key, tensor] : expected) {
      CAPTURE(key);
      CHECK(at::allclose(weights.raw(key), tensor, 0, 1e-6));
      if (key.ends_with("_proj.weight")) CHECK(!at::allclose(tensor, base.at(key), 0, 1e-2));
    }
  }
}

TEST_CASE("the scale, orientation, dtype and naming of an adapter") {
  const Scratch scratch;
  const at::Tensor base = at::linspace(-1, 1, 12).view({4, 3}), product = at::matmul(kB, kA);
  const auto merge = [&](const at::Tensor& weight, const Tensors& tensors,
                         const nlohmann::json& config = {}) {
    save_safetensors(scratch / "base.safetensors", {{"model.layers.1.q.weight", weight}});
    Weights weights = Weights::open(scratch / "base.safetensors", [](std::string_view name) {
      return "llm" + std::string(name.substr(5));
    });
    weights.merge_adapter(write_adapter(scratch, tensors, config));
    return weights.raw("llm.layers.1.q.weight");
  };
  const auto q = lora("model.layers.1.q");
  CHECK(at::allclose(merge(base, q), base + product * 3));
  CHECK(at::allclose(merge(base, lora("model.layers.1.q", "default.")), base + product * 3));
  CHECK(at::allclose(merge(base, q, {{"use_rslora", true}}), base + product * (6 / std::sqrt(2))));
  CHECK(at::allclose(merge(base.t(), q, {{"fan_in_fan_out", true}}), (base + product * 3).t()));
  CHECK(at::equal(merge(base.to(at::kBFloat16), q),
                  (base.to(at::kBFloat16).to(at::kFloat) + product * 3).to(at::kBFloat16)));
  for (const char* pattern :
       {"model.layers.1.q", "layers.1.q", "q", R"(layers\.\d+\.q)", "^model.*q", R"(.*\.(q|k))"}) {
    CAPTURE(pattern);
    CHECK(at::allclose(merge(base, q, {{"alpha_pattern", {{pattern, 2}}}}), base + product));
    CHECK(at::allclose(merge(base, q, {{"r", 8}, {"rank_pattern", {{pattern, 2}}}}), base + product * 3));
  }
  for (const char* pattern : {"layers.2.q", "ers.1.q", "1", "model.layers.1", R"(layers\.[023]\.q)"}) {
    CAPTURE(pattern);
    CHECK(at::allclose(merge(base, q, {{"alpha_pattern", {{pattern, 2}}}}), base + product * 3));
  }
  const Tensors whole = {{"base_model.model.model.layers.1.q.weight", product}};
  CHECK(at::equal(merge(base, whole), product));
  CHECK(at::equal(
      merge(base, {{"base_model.model.model.layers.1.q.modules_to_save.default.weight", product}}), product));
}

TEST_CASE("adapters that are not understood change nothing") {
  const Scratch scratch;
  save_safetensors(scratch / "base.safetensors", {{"q.weight", at::zeros({4, 3})},
                                                  {"k.weight", at::zeros({3, 3})},
                                                  {"i.weight", at::zeros({4, 3}, at::kInt)}});
  const auto fails = [&](const Tensors& tensors, const nlohmann::json& config, const std::string& expected) {
    Weights weights = Weights::open(scratch / "base.safetensors");
    const fs::path dir = write_adapter(scratch, tensors, config);
    check_mentions(error_of([&] { weights.merge_adapter(dir); }), expected);
    CHECK(at::equal(weights.raw("q.weight"), at::zeros({4, 3})));
  };
  const auto q = lora("q");
  const auto with = [&](const std::string& key, const at::Tensor& tensor) {
    Tensors more = q;
    more["base_model.model." + key] = tensor;
    return more;
  };
  fails(q, {{"peft_type", "LOHA"}}, "\"LOHA\"");
  fails(q, {{"peft_type", nullptr}}, "peft_type is missing");
  fails(q, {{"use_dora", true}}, "use_dora");
  fails(q, {{"layer_replication", {{0, 1}}}}, "layer_replication");
  fails(q, {{"init_lora_weights", "pissa_niter_4"}}, "changes the base weights");
  fails(q, {{"r", 3}}, "expected [3, in]");
  fails(q, {{"r", 0}}, "r is 0");
  fails(q, {{"lora_alpha", "6"}}, "expected a number");
  fails(q, {{"alpha_pattern", {{"q", 1}, {"^q", 2}}}}, "two patterns");
  fails(q, {{"alpha_pattern", {{"(q", 1}}}}, "not understood");
  fails(q, {{"alpha_pattern", {{"(q{1000}){1000}", 1}}}}, "not understood");
  fails(q, {{"alpha_pattern", {{"q", "x"}}}}, "not a number");
  fails({}, {}, "holds no tensors");
  fails(with("q.lora_magnitude_vector", at::ones({4})), {}, "not supported");
  fails(with("embed.lora_embedding_A", at::ones({4})), {}, "not supported");
  fails(with("k.lora_A.weight", kA), {}, "only one of");
  fails(with("other.bias", at::ones({4})), {}, "no 'other.bias'");
  fails(with("k.weight", at::ones({4, 3})), {}, "of shape [4, 3], but it is Float of shape [3, 3]");
  fails(with("i.weight", at::ones({4, 3})), {}, "but it is Int");
  fails(with("q.weight", at::ones({4, 3})), {}, "twice");
  fails(lora("k"), {}, "of shape [4, 3]");
  fails({{"q.lora_A.weight", kA}}, {}, "does not start with");
  fails(with("k.weight", at::ones({3, 3}, at::kInt)), {}, "dtype Int");
  // Exponential in a backtracking matcher.
  fails(lora(std::string(60, 'q') + "!"), {{"alpha_pattern", {{"((q+)+)+", 1}}}}, "changes 'qqq");
  Weights weights = Weights::open(scratch / "base.safetensors");
  check_mentions(error_of([&] { weights.merge_adapter(scratch / "none"); }), "adapter_config.json");
}

TEST_CASE("an adapter that is written is read back, its exceptions too") {
  const Scratch scratch;
  const auto delta = [](int64_t rank, double scale) {
    return LoraDelta{at::randn({rank, 3}), at::randn({4, rank}, at::kDouble).to(at::kBFloat16), scale, false};
  };
  const std::map<std::string, LoraDelta> deltas = {{"layers.0.q", delta(2, 2)},
                                                   {"layers.0.k", delta(3, 4.0 / 3)},
                                                   {"layers.1.q", delta(2, 0.15)},
                                                   {"layers.11.q", delta(5, 0.8)}};
  save_adapter(scratch / "new/adapter", deltas, {0.05, "org/name"});
  const nlohmann::json config = read_json(scratch / "new/adapter/adapter_config.json");
  CHECK(config["lora_alpha"].dump() == "4");
  CHECK(config["lora_dropout"] == 0.05);
  CHECK(config["base_model_name_or_path"] == "org/name");
  const Adapter read = load_adapter(scratch / "new/adapter");
  REQUIRE(read.deltas.size() == deltas.size());
  for (const auto& [module, expected] : deltas) {
    CAPTURE(module);
    const LoraDelta& got = read.deltas.at(module);
    CHECK(at::equal(got.a, expected.a));
    CHECK(at::equal(got.b, expected.b));
    CHECK(got.scale == doctest::Approx(expected.scale).epsilon(1e-12));
  }
  check_mentions(error_of([&] { save_adapter(scratch.write("file", ""), deltas); }), "cannot write");
}

TEST_CASE("an adapter that brings the weight its change belongs to") {
  const Scratch scratch;
  save_safetensors(scratch / "base.safetensors", {{"lm_head.weight", at::ones({4, 3})}});
  const at::Tensor own = at::linspace(0, 1, 12).view({4, 3}), product = at::matmul(kB, kA);
  Tensors tensors = lora("lm_head");
  tensors["base_model.model.lm_head.base_layer.weight"] = own;
  Weights weights = Weights::open(scratch / "base.safetensors");
  weights.merge_adapter(write_adapter(scratch, tensors));
  CHECK(at::allclose(weights.raw("lm_head.weight"), own + product * 3));
  // The weight alone takes the model's place; with another shape it is refused.
  Weights alone = Weights::open(scratch / "base.safetensors");
  alone.merge_adapter(write_adapter(scratch, {{"base_model.model.lm_head.base_layer.weight", own}}));
  CHECK(at::equal(alone.raw("lm_head.weight"), own));
  tensors["base_model.model.lm_head.base_layer.weight"] = at::ones({5, 3});
  const auto merge_and_read = [&] {
    alone.merge_adapter(write_adapter(scratch, tensors));
    alone.raw("lm_head.weight");
  };
  check_mentions(error_of(merge_and_read), "has shape [5, 3]");
}

TEST_CASE("an adapter on an embedding that is the head too makes them two, as in PEFT") {
  const Scratch scratch;
  const at::Tensor own = at::linspace(0, 1, 12).view({4, 3}), product = at::matmul(kB, kA);
  const auto merged = [&](const Tensors& base, const Tensors& adapter, const nlohmann::json& config = {}) {
    save_safetensors(scratch / "base.safetensors", base);
    Weights weights = Weights::open(scratch / "base.safetensors");
    const bool two = weights.merge_adapters({write_adapter(scratch, adapter, config)}, "embed_tokens.weight",
                                            "lm_head.weight");
    return std::pair{two, std::move(weights)};
  };
  const auto equals = [](const Weights& weights, const char* name, const at::Tensor& expected) {
    CHECK(at::allclose(weights.raw(name), expected));
    CHECK(weights.name_in_file(name) == name);
  };
  const auto whole = [&](const std::string& module) {
    return Tensors{{"base_model.model." + module + ".weight", own}};
  };
  // A head that is stored beside it is not read, as transformers has it.
  for (const Tensors& base : {Tensors{{"embed_tokens.weight", at::ones({4, 3})}},
                              Tensors{{"embed_tokens.weight", at::ones({4, 3})}, {"lm_head.weight", -own}}}) {
    const auto [input, changed_input] = merged(base, whole("embed_tokens"));
    CHECK(input);
    equals(changed_input, "embed_tokens.weight", own);
    equals(changed_input, "lm_head.weight", at::ones({4, 3}));
    const auto [output, changed_output] = merged(base, whole("lm_head"));
    CHECK(output);
    equals(changed_output, "embed_tokens.weight", at::ones({4, 3}));
    equals(changed_output, "lm_head.weight", own);
    const auto [low_rank, added] = merged(base, lora("lm_head"));
    CHECK(low_rank);
    equals(added, "lm_head.weight", at::ones({4, 3}) + product * 3);
  }
  // What changes neither leaves everything as it was.
  const Tensors other = {{"embed_tokens.weight", at::ones({4, 3})}, {"q.weight", at::zeros({4, 3})}};
  const auto [two, weights] = merged(other, lora("q"));
  CHECK_FALSE(two);
  CHECK(weights.names() == std::vector<std::string>{"embed_tokens.weight", "q.weight"});
  check_mentions(error_of([&] {
                   merged(other, whole("embed_tokens"), {{"ensure_weight_tying", true}});
                 }),
                 "ensure_weight_tying");
}

TEST_CASE("a file that git did not fetch is told from a damaged one") {
  const Scratch scratch;
  const std::string pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7516344472\n";
  for (const char* name : {"model.safetensors", "model.bin", "model.safetensors.index.json"}) {
    const fs::path file = scratch.write(name, pointer);
    check_mentions(error_of([&] { Weights::open(file); }), file.string() + ": is a Git LFS pointer");
  }
}

TEST_CASE("several adapters merge one after the other, and nothing is computed before it is asked for") {
  const Scratch scratch;
  save_safetensors(scratch / "base.safetensors", {{"old.q.weight", at::ones({4, 3}, at::kBFloat16)}});
  Weights weights = Weights::open(scratch / "base.safetensors",
                                  [](std::string_view name) { return std::string(name.substr(4)); });
  const at::Tensor product = at::matmul(kB, kA);
  for (int i = 0; i < 2; ++i) weights.merge_adapter(write_adapter(scratch, lora("old.q")));
  const at::Tensor once = (at::ones({4, 3}) + product * 3).to(at::kBFloat16);
  const at::Tensor twice = (once.to(at::kFloat) + product * 3).to(at::kBFloat16);
  CHECK(at::equal(weights.raw("q.weight"), twice));
  CHECK(at::equal(weights.take("q.weight", {4, 3}, at::kBFloat16), twice));
  CHECK(weights.name_in_file("q.weight") == "old.q.weight");
  CHECK(weights.bytes("q.weight") == 24);
}

TEST_CASE("a checkpoint in two places") {
  Weights weights = Weights::from({{"a", at::ones({2})}}, "first");
  weights.include(Weights::from({{"b", at::zeros({3})}}, "second"));
  CHECK(weights.names() == std::vector<std::string>{"a", "b"});
  CHECK(weights.take("b", {3}, at::kFloat).numel() == 3);
  CHECK_THROWS_WITH_AS(weights.expect_all_taken(),
                       "first and second has 1 tensors that the model does not know:\n  a [2]", Error);
  CHECK_THROWS_WITH_AS(weights.include(Weights::from({{"a", at::ones({2})}}, "third")),
                       "third: 'a' is also in first", Error);
}
