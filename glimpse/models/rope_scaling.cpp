#include "glimpse/models/rope_scaling.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <numbers>
#include <string_view>

#include "glimpse/models/config.h"

namespace glimpse {

using nlohmann::json;

namespace {

constexpr int64_t kMostPositions = int64_t{1} << 30;

struct Kind {
  const char* name;
  std::initializer_list<const char*> fields;
};
// Beside the fields of all kinds. "mrope" means plain angles in three components; "finetuned" says where
// weights come from.
const Kind kKinds[] = {
    {"default", {}},
    {"mrope", {}},
    {"linear", {"factor", "original_max_position_embeddings"}},
    {"dynamic", {"factor", "original_max_position_embeddings"}},
    {"yarn",
     {"factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale",
      "mscale_all_dim", "truncate", "finetuned"}},
    {"llama3", {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"}},
};
constexpr const char* kAllKinds[] = {"type",          "rope_type",         "rope_theta",
                                     "mrope_section", "mrope_interleaved", "partial_rotary_factor"};

template <class List>
bool has(const List& list, std::string_view name) {
  return std::find(std::begin(list), std::end(list), name) != std::end(list);
}

// The kind that `rope` names under either of the names in use.
const Kind& rope_kind(const json& rope, const std::string& where) {
  const Kind* found = nullptr;
  for (const char* key : {"type", "rope_type"}) {
    const json& told = member(rope, key);
    if (told.is_null()) continue;
    std::string known;
    const Kind* named = nullptr;
    for (const Kind& kind : kKinds) {
      if (told == kind.name) named = &kind;
      known += concat(known.empty() ? "" : ", ", kind.name);
    }
    check(named != nullptr, where, ": ", key, " ", json_text(told).substr(0, 100),
          " is not supported (known: ", known, ")");
    const auto plain = [](const Kind& kind) { return kind.fields.size() == 0; };
    check(!found || found == named || (plain(*found) && plain(*named)), where, ": type is ",
          member(rope, "type"), " but rope_type is ", told);
    found = named;
  }
  return found ? *found : kKinds[0];
}

// A number above `least`, or `fallback` where it is not set.
double number(const json& rope, const char* key, double fallback, double least, const std::string& where) {
  const auto value = setting<double>(rope, key, fallback, where);
  check(std::isfinite(value) && value > least, where, ": ", key, " is ", value, ", expected a number above ",
        least);
  return value;
}

int64_t positions_of(int64_t positions, const char* key, const std::string& where) {
  check(positions > 0 && positions <= kMostPositions, where, ": ", key, " is ", positions);
  return positions;
}

// How far the text of `scale` times the trained length lengthens queries and keys.
double lengthening(double scale, double by = 1) {
  return scale <= 1 ? 1 : 0.1 * by * std::log(scale) + 1;
}

}  // namespace

RopeScaling::RopeScaling(const json& text, const json& top, const RopeDefaults& defaults,
                         const std::string& file, at::Device device) {
  const json rope = rope_settings(text, top, file);
  const std::string where = file + ": rotary embedding";
  const Kind& kind = rope_kind(rope, where);
  for (const auto& [key, value] : rope.items())
    check(has(kAllKinds, key) || has(kind.fields, key), where, ": ", key, " ",
          json_text(value).substr(0, 100), " is not known with type ", kind.name);
  for (const json* part : {&rope, &text})
    check(setting<double>(*part, "partial_rotary_factor", 1, where) == 1, where,
          ": partial_rotary_factor is not supported");

  constexpr const char* most = "max_position_embeddings";
  constexpr const char* trained = "original_max_position_embeddings";
  max_positions_ = positions_of(setting(text, most, defaults.max_positions, file), most, file);
  theta_ = number(rope, "rope_theta", setting(text, "rope_theta", defaults.theta, where), 0, where);
  frequencies_ = inverse_frequencies(defaults.head_dim, theta_);
  context_ = max_positions_;
  if (kind.fields.size() > 0) {
    const int64_t original = positions_of(
        setting(rope, trained, setting(text, trained, max_positions_, where), where), trained, where);
    const bool told = rope.contains(trained) || text.contains(trained);
    scale(kind.name, rope, original, told, where);
  }
  frequencies_ = frequencies_.unsqueeze(0).to(device);
}

void RopeScaling::scale(std::string_view kind, const json& rope, int64_t original, bool told,
                        const std::string& where) {
  const double trained = static_cast<double>(original), most = static_cast<double>(max_positions_);
  check(rope.contains("factor") || (kind == "yarn" && told), where, ": factor is missing");
  factor_ = setting<double>(rope, "factor", most / trained, where);
  check(factor_ >= 1 && factor_ <= 1e6, where, ": factor is ", factor_, ", expected 1 or more");
  if (kind != "llama3")  // where max_position_embeddings is the length that is reached
    context_ = std::max(
        context_, static_cast<int64_t>(std::min(factor_ * trained, static_cast<double>(kMostPositions))));
  if (kind == "linear") {
    frequencies_ = frequencies_ / factor_;
  } else if (kind == "dynamic") {
    check(original == max_positions_, where, ": original_max_position_embeddings is ", original,
          " but max_position_embeddings is ", max_positions_, "; dynamic scaling begins behind the latter");
    check(frequencies_.numel() > 1, where, ": dynamic scaling needs heads of more than 2 numbers");
    dynamic_ = factor_ > 1;
  } else if (kind == "yarn") {
    scale_yarn(rope, trained, where);
  } else {
    scale_llama3(rope, trained, where);
  }
}

void RopeScaling::scale_yarn(const json& rope, double trained, const std::string& where) {
  const auto setting_of = [&](const char* key) { return setting<double>(rope, key, 0, where); };
  const double mscale = setting_of("mscale"), all = setting_of("mscale_all_dim");
  check(std::isfinite(mscale) && std::isfinite(all), where, ": mscale or mscale_all_dim is not finite");
  const double own = mscale != 0 && all != 0 ? lengthening(factor_, mscale) / lengthening(factor_, all)
                                             : lengthening(factor_);
  attention_factor_ = number(rope, "attention_factor", own, 0, where);

  // Pairs that turn more than `fast` times within the trained length stay as they are, those that turn less
  // than `slow` times are slowed down by the factor, and those between by something between.
  const double fast = number(rope, "beta_fast", 32, 0, where), slow = number(rope, "beta_slow", 1, 0, where);
  check(fast > slow, where, ": beta_fast ", fast, " is not above beta_slow ", slow);
  check(theta_ > 1, where, ": rope_theta is ", theta_, ", expected more than 1");
  const int64_t pairs = frequencies_.numel();
  const auto dim = static_cast<double>(2 * pairs);
  const auto pair_with = [&](double turns) {
    return dim * std::log(trained / (turns * 2 * std::numbers::pi)) / (2 * std::log(theta_));
  };
  double low = pair_with(fast), high = pair_with(slow);
  if (setting(rope, "truncate", true, where)) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1);
  if (low == high) high += 0.001;
  const at::Tensor ramp = ((at::arange(pairs, at::kFloat) - low) / (high - low)).clamp(0, 1);
  const at::Tensor stay = 1 - ramp, periods = at::pow(theta_, at::arange(0, 2 * pairs, 2, at::kFloat) / dim);
  frequencies_ = at::reciprocal(factor_ * periods) * (1 - stay) + at::reciprocal(periods) * stay;
}

void RopeScaling::scale_llama3(const json& rope, double trained, const std::string& where) {
  for (const char* key : {"low_freq_factor", "high_freq_factor", "original_max_position_embeddings"})
    need<double>(rope, key, where);
  const double low = number(rope, "low_freq_factor", 1, 0, where),
               high = number(rope, "high_freq_factor", 4, 0, where);
  check(high > low, where, ": high_freq_factor ", high, " is not above low_freq_factor ", low);
  const at::Tensor wave = 2 * std::numbers::pi / frequencies_, slowed = frequencies_ / factor_;
  const at::Tensor smooth = (trained / wave - low) / (high - low);
  const at::Tensor between = (1 - smooth) * slowed + smooth * frequencies_;
  frequencies_ =
      at::where(wave > trained / low, slowed, at::where(wave < trained / high, frequencies_, between));
}

at::Tensor RopeScaling::frequencies(const at::Tensor& position_ids) const {
  const at::Tensor plain = frequencies_.to(position_ids.device());
  if (!dynamic_) return plain;
  const bool several = position_ids.dim() == 3;
  const at::Tensor length =
      ((several ? position_ids.amax({0, 2}) : position_ids.amax().unsqueeze(0)) + 1).unsqueeze(1);
  const auto pairs = plain.size(1), dim = 2 * pairs;
  const at::Tensor stretch =
      length.to(at::kFloat) * factor_ / static_cast<double>(max_positions_) - (factor_ - 1);
  const at::Tensor theta = theta_ * at::pow(stretch, static_cast<double>(dim) / static_cast<double>(dim - 2));
  const at::Tensor exponents = at::arange(0, dim, 2, plain.options()) / static_cast<double>(dim);
  const at::Tensor longer =
      at::where(length > max_positions_, at::reciprocal(at::pow(theta, exponents)), plain);
  return several ? longer.repeat_interleave(position_ids.size(2), 0) : longer;
}

Rope RopeScaling::tables(const at::Tensor& angles) const {
  const Rope plain = rope_from_angles(angles);
  return attention_factor_ == 1 ? plain : Rope{plain.cos * attention_factor_, plain.sin * attention_factor_};
}

}  // namespace glimpse
