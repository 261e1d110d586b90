#include "glimpse/io/quantization.h"

#include <algorithm>
#include <initializer_list>
#include <map>
#include <memory>
#include <set>
#include <tuple>
#include <vector>

#include "glimpse/base/ascii.h"
#include "glimpse/base/check.h"
#include "glimpse/io/layout.h"
#include "glimpse/io/packed_layer.h"

namespace glimpse {

using nlohmann::json;

namespace {

using Method = Quantization::Method;

struct MethodName {
  const char* name;
  const char* shown;
  Method method;
};
constexpr MethodName kMethods[] = {{"glimpse", "glimpse", Method::glimpse},
                                   {"awq", "AWQ", Method::awq},
                                   {"gptq", "GPTQ", Method::gptq},
                                   {"fp8", "FP8", Method::fp8}};

// Reads the members of quantization_config.
class Reader {
 public:
  Reader(const json& settings, std::string where) : settings_(settings), where_(std::move(where)) {}

  // The member, or `fallback` where it is not set.
  template <class T>
  T get(const char* key, T fallback) const {
    const json& value = member(settings_, key);
    if (value.is_null()) return fallback;
    try {
      return value.get<T>();
    } catch (const json::exception&) {
      refuse(key, "another type");
    }
  }
  std::string lower(const char* key, const char* fallback) const {
    return lowered(get<std::string>(key, fallback));
  }
  // Error unless the member is one of these, or not set.
  template <class T>
  T one_of(const char* key, T fallback, std::initializer_list<T> known) const {
    const T value = get(key, fallback);
    std::string all;
    for (const T& each : known) all += concat(all.empty() ? "" : " or ", json(each).dump());
    if (std::find(known.begin(), known.end(), value) == known.end()) refuse(key, all);
    return value;
  }
  [[noreturn]] void refuse(const char* key, const std::string& expected) const {
    fail(where_, ": quantization_config: ", key, " ", json_text(member(settings_, key)).substr(0, 100),
         " is not supported; expected ", expected);
  }

 private:
  const json& settings_;
  std::string where_;
};

int64_t group_of(const Reader& read) {
  const auto group = read.get<int64_t>("group_size", 128);
  if (group != -1 && (group < 1 || group > 1 << 20)) read.refuse("group_size", "a number above 0, or -1");
  return std::max<int64_t>(group, 0);
}

void read_awq(const Reader& read, Quantization& q) {
  q.bits = read.one_of("bits", 4, {4});
  q.group = group_of(read);
  if (read.lower("version", "gemm") != "gemm") read.refuse("version", "\"gemm\"");
  read.one_of("zero_point", true, {true});
}

void read_gptq(const Reader& read, Quantization& q) {
  q.bits = read.one_of("bits", 4, {4, 8});
  q.group = group_of(read);
  q.shuffled = read.get("desc_act", false);
  for (const char* key : {"checkpoint_format", "format"}) {
    const std::string format = read.lower(key, "");
    if (format == "gptq_v2")
      q.zeros_less_one = false;
    else if (!format.empty() && format != "gptq")
      read.refuse(key, "\"gptq\" or \"gptq_v2\"");
  }
  read.one_of("is_marlin_format", false, {false});
  read.one_of<std::string>("pack_dtype", "int32", {"int32"});
}

void read_fp8(const Reader& read, Quantization& q) {
  q.bits = 8;
  if (read.lower("fmt", "e4m3") != "e4m3") read.refuse("fmt", "\"e4m3\"");
  const auto block = read.get("weight_block_size", std::vector<int64_t>());
  const auto is_size = [](int64_t size) { return size > 0 && size <= 1 << 20; };
  if (!block.empty() && (block.size() != 2 || !is_size(block[0]) || !is_size(block[1])))
    read.refuse("weight_block_size", "two sizes");
  if (!block.empty()) std::tie(q.block_out, q.block_in) = std::pair(block[0], block[1]);
}

bool is_fp8(const Weights& weights, const std::string& name) {
  return c10::elementSize(weights.dtype(name)) == 1 && at::isFloatingType(weights.dtype(name));
}

// The name of the module whose tensor ends so, or "".
std::string module_of(const std::string& name, std::string_view ending) {
  return name.ends_with(ending) ? name.substr(0, name.size() - ending.size()) : "";
}

// A checkpoint with packed layers, by the names in its files, that becomes one of plain weights.
class Unpacking {
 public:
  Unpacking(const std::filesystem::path& dir, const Quantization& how)
      : file_(dir.string()), how_(how), packed_(std::make_shared<const Weights>(Weights::open(dir))) {}

  Weights weights(Weights::Rename rename) {
    const std::vector<std::string> names = packed_->names();
    for (const std::string& name : names)
      if (const std::string module = module_of(name, ".qweight"); !module.empty())
        add_steps(module);
      else if (is_fp8(*packed_, name))
        add_fp8(name);
    for (const std::string& name : names)
      if (!used_.contains(name))
        add(name, {name}, packed_->shape(name), packed_->dtype(name), packed_->stored_as(name),
            [weights = packed_, name](at::ScalarType) { return weights->raw(name); });
    return Weights::lazy(tensors_, file_, std::move(rename));
  }

 private:
  // A part of a layer.
  at::Tensor part(const std::string& name, const std::string& layer) {
    check(packed_->contains(name), file_, ": ", layer, " is packed, but '", name, "' is missing");
    used_.insert(name);
    return packed_->raw(name);
  }

  void add_steps(const std::string& module) {
    const std::string what = concat(file_, ": ", module);
    const bool awq = how_.method == Method::awq;
    check(awq || how_.method == Method::gptq, what, ".qweight: 4-bit layers, but quantization_config says ",
          how_.text());
    PackedSteps layer;
    layer.order = awq ? PackedSteps::Order::awq : PackedSteps::Order::gptq;
    layer.bits = how_.bits;
    layer.less_one = !awq && how_.zeros_less_one;
    std::vector<std::string> parts = {module + ".qweight", module + ".qzeros", module + ".scales"};
    layer.words = part(parts[0], module);
    layer.zeros = part(parts[1], module);
    layer.scales = part(parts[2], module);
    check(layer.words.dim() == 2 && layer.words.numel() > 0, what, ": qweight has shape ",
          shape_text(layer.words.sizes()), "; expected a matrix");
    layer.group = how_.group > 0 ? how_.group : layer.in();
    const std::string order = module + ".g_idx";
    if (!awq && (how_.shuffled || packed_->contains(order))) {
      parts.push_back(order);
      layer.group_of = part(order, module);
    }
    layer.check_shapes(what);
    add(
        module + ".weight", parts, {layer.out(), layer.in()}, at::kFloat,
        concat(awq ? "AWQ " : "GPTQ ", how_.bits, " bits"),
        [layer, what](at::ScalarType dtype) { return layer.read(dtype, what); }, layer.few_bits(what));
  }

  void add_fp8(const std::string& name) {
    const std::string module = module_of(name, ".weight"), what = concat(file_, ": ", name);
    check(how_.method == Method::fp8 && !module.empty(), what,
          " is stored in 8-bit floating point, but config.json has no quantization_config of fp8 for it");
    // The scale's two names mean the same: it is multiplied by. What activations are to be rounded by is not
    // needed, as they are not rounded.
    const std::string older = module + ".weight_scale", newer = module + ".weight_scale_inv";
    const std::string scale = packed_->contains(newer) ? newer : older;
    Fp8Blocks layer{how_.block_out, how_.block_in, part(name, module), part(scale, module)};
    if (layer.block_out == 0 && layer.weight.dim() == 2) {
      layer.block_out = layer.weight.size(0);
      layer.block_in = layer.weight.size(1);
    }
    layer.check_shapes(what);
    std::vector<std::string> parts = {name, scale};
    for (const char* activation : {".input_scale", ".activation_scale"})
      if (packed_->contains(module + activation)) {
        parts.push_back(module + activation);
        used_.insert(parts.back());
      }
    add(name, parts, layer.weight.sizes(), at::kFloat, "FP8 E4M3",
        [layer, what](at::ScalarType dtype) { return layer.read(dtype, what); });
  }

  void add(const std::string& name, const std::vector<std::string>& parts, at::IntArrayRef shape,
           at::ScalarType dtype, const std::string& stored_as, std::function<at::Tensor(at::ScalarType)> read,
           std::optional<FewBits> few_bits = {}) {
    size_t bytes = 0;
    for (const std::string& each : parts) bytes += packed_->bytes(each);
    const auto release = [weights = packed_, parts] {
      for (const std::string& each : parts) weights->release(each);
    };
    // What was read to compute a weight is not needed again soon.
    if (parts.size() > 1)
      read = [compute = std::move(read), release](at::ScalarType wanted) {
        const at::Tensor weight = compute(wanted);
        release();
        return weight;
      };
    Weights::Lazy tensor{shape.vec(),     dtype,   stored_as,          bytes, file_, name,
                         std::move(read), release, std::move(few_bits)};
    const bool added = tensors_.emplace(name, std::move(tensor)).second;
    check(added, file_, ": '", name, "' is there plain and packed");
  }

  std::string file_;
  const Quantization& how_;
  std::shared_ptr<const Weights> packed_;
  std::map<std::string, Weights::Lazy> tensors_;
  std::set<std::string> used_;
};

}  // namespace

Quantization Quantization::of(const json& config, const std::string& where) {
  const json* settings = &member(config, "quantization_config");
  if (settings->is_null() && member(config, "text_config").is_object())
    settings = &member(config["text_config"], "quantization_config");
  check(member(config, "compression_config").is_null(), where, ": compression_config is not supported");
  Quantization q;
  if (settings->is_null()) return q;
  check(settings->is_object(), where, ": quantization_config has an unexpected value ",
        json_text(*settings).substr(0, 100));
  const Reader read(*settings, where);
  const auto name = read.get<std::string>("quant_method", "");
  std::string known;
  for (const MethodName& each : kMethods) {
    if (name == each.name) q.method = each.method;
    known += concat(known.empty() ? "" : ", ", each.name);
  }
  check(q.method != Method::none, where, ": quantization_config: quant_method '", name,
        "' is not supported (known: ", known, ")");
  if (q.method == Method::glimpse) q.bits = read.get("bits", 0);
  if (q.method == Method::awq) read_awq(read, q);
  if (q.method == Method::gptq) read_gptq(read, q);
  if (q.method == Method::fp8) read_fp8(read, q);
  return q;
}

std::string Quantization::text() const {
  if (method == Method::none) return "";
  const auto* name = std::find_if(std::begin(kMethods), std::end(kMethods),
                                  [&](const MethodName& each) { return each.method == method; });
  std::string out = concat(name->shown, ", ", bits, " bits");
  if (group > 0) out += concat(", groups of ", group);
  if (shuffled) out += ", inputs in any order";
  if (block_out > 0) out += concat(", blocks of ", block_out, " x ", block_in);
  return out;
}

Weights open_quantized(const std::filesystem::path& dir, const Quantization& how, Weights::Rename rename) {
  if (how.is_packed()) return Unpacking(dir, how).weights(std::move(rename));
  Weights weights = Weights::open(dir, std::move(rename));
  for (const std::string& name : weights.names())
    check(module_of(name, ".qweight").empty() && !is_fp8(weights, name), dir.string(), ": '",
          weights.name_in_file(name), "' (", weights.stored_as(name),
          ") is quantised, but config.json has no quantization_config that says how");
  return weights;
}

}  // namespace glimpse
