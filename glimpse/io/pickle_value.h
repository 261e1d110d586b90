#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace glimpse::pickle {

struct Value;
/// Pickles may share values and even make cycles, so the interpreter owns all values and these are plain
// pointers.
using Values = std::vector<const Value*>;

struct None {};
struct Mark {};
struct Tuple {
  Values items;
};
struct List {
  Values items;
};
struct Dict {
  std::vector<std::pair<const Value*, const Value*>> items;
};
enum class Function { ordered_dict, rebuild_tensor, rebuild_parameter };
/// A storage seen as elements of one type; `bytes` is [n] uint8.
struct Storage {
  at::Tensor bytes;
  at::ScalarType dtype;
};

/// One object of a pickle.
struct Value {
  std::variant<None, Mark, bool, int64_t, double, std::string, Tuple, List, Dict, Function, at::ScalarType,
               Storage, at::Tensor>
      data;
};

/// The tensors below `root` under dotted names; see unpickle_tensors.
std::map<std::string, at::Tensor> flatten_tensors(const Value& root, const std::string& what);

}  // namespace glimpse::pickle
