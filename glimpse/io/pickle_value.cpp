#include "glimpse/io/pickle_value.h"

#include "glimpse/base/check.h"
#include "glimpse/io/layout.h"

namespace glimpse::pickle {
namespace {

constexpr size_t kMaxVisits = 1'000'000;
constexpr int kMaxDepth = 32;

/// Collects the tensors below a value under dotted names.
class Flattener {
 public:
  explicit Flattener(const std::string& what) : what_(what) {}

  void visit(const Value& value, const std::string& name, int depth = 0) {
    // The same dictionary may be reachable on very many paths.
    check(++visits_ <= kMaxVisits && depth <= kMaxDepth, what_, ": nested too deeply or too large");
    check(name.size() <= kMaxTensorName, what_, ": a tensor name is longer than ", kMaxTensorName, " bytes");
    if (const auto* tensor = std::get_if<at::Tensor>(&value.data)) {
      check(tensors_.emplace(name, *tensor).second, what_, ": two tensors are named '", name, "'");
    } else if (const auto* dict = std::get_if<Dict>(&value.data)) {
      for (const auto& [key, item] : dict->items) visit(*item, join(name, key_text(*key)), depth + 1);
    } else if (const Values* items = sequence(value)) {
      for (size_t i = 0; i < items->size(); ++i)
        visit(*(*items)[i], join(name, std::to_string(i)), depth + 1);
    }
  }

  std::map<std::string, at::Tensor> take() { return std::move(tensors_); }

 private:
  static const Values* sequence(const Value& value) {
    if (const auto* list = std::get_if<List>(&value.data)) return &list->items;
    if (const auto* tuple = std::get_if<Tuple>(&value.data)) return &tuple->items;
    return nullptr;
  }

  static std::string join(const std::string& name, const std::string& key) {
    return name.empty() ? key : name + "." + key;
  }

  std::string key_text(const Value& key) const {
    if (const auto* text = std::get_if<std::string>(&key.data)) return *text;
    const auto* index = std::get_if<int64_t>(&key.data);
    check(index != nullptr, what_, ": a dictionary key is neither text nor an integer");
    return std::to_string(*index);
  }

  const std::string& what_;
  size_t visits_ = 0;
  std::map<std::string, at::Tensor> tensors_;
};

}  // namespace

std::map<std::string, at::Tensor> flatten_tensors(const Value& root, const std::string& what) {
  check(std::holds_alternative<Dict>(root.data), what, ": expected a dictionary of tensors");
  Flattener flattener(what);
  flattener.visit(root, "");
  return flattener.take();
}

}  // namespace glimpse::pickle
