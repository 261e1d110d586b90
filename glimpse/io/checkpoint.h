#pragma once

#include <ATen/ATen.h>

#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "glimpse/base/json_file.h"
#include "glimpse/io/few_bits.h"
#include "glimpse/io/model_dir.h"

namespace glimpse {

/// The weights of one checkpoint, looked up by canonical name. Safetensors are memory-mapped: opening costs
/// no memory. Not for use by several threads at once.
class Weights {
 public:
  /// File name of a tensor -> canonical name. No two may map to the same one.
  using Rename = std::function<std::string(std::string_view)>;

  /// Opens a directory (model.safetensors, model.safetensors.index.json with its shards, or the same as
  /// pytorch_model.bin) or a single .safetensors, .index.json, .pt, .pth or .bin file.
  static Weights open(const std::filesystem::path& dir_or_file, Rename rename = {});

  /// A tensor that is read, in the dtype that is wanted, whenever it is asked for.
  struct Lazy {
    std::vector<int64_t> shape;
    at::ScalarType dtype = at::kFloat;  ///< that holds it exactly
    std::string stored_as;              ///< the file's name of its type
    size_t bytes = 0;                   ///< in the file
    std::string file, name_in_file;
    std::function<at::Tensor(at::ScalarType dtype)> read;
    std::function<void()> release;  ///< gives back the memory of the file
    std::optional<FewBits> few_bits = {};
  };
  /// Tensors by the names that a file of the published layout has for them.
  static Weights lazy(const std::map<std::string, Lazy>& tensors, const std::string& source, Rename rename);

  /// Tensors that are already in memory, by canonical name; `source` stands for a file name in errors.
  static Weights from(std::map<std::string, at::Tensor> tensors, const std::string& source);
  /// A checkpoint that does not exist yet: `make` gives a tensor the first time its name is taken.
  static Weights fresh(std::function<at::Tensor(const std::string& name, at::IntArrayRef shape)> make);

  Weights(Weights&&) = default;
  Weights& operator=(Weights&&) = default;

  /// Adds the tensors of another checkpoint. Error when both have one of a name.
  void include(Weights other);

  bool contains(const std::string& name) const { return entries_.contains(name); }
  /// All canonical names, sorted.
  std::vector<std::string> names() const;
  /// The tensor in its own dtype: the file's memory unless an adapter or the file's type changes it. Error
  /// naming the nearest name when there is none.
  at::Tensor raw(const std::string& name) const { return entry(name).value(dtype(name)); }
  /// Size and dtype of raw(name), which is not read for it.
  at::IntArrayRef shape(const std::string& name) const { return entry(name).tensor.sizes(); }
  at::ScalarType dtype(const std::string& name) const { return entry(name).tensor.scalar_type(); }
  /// What the file calls the type in which it stores the tensor.
  std::string stored_as(const std::string& name) const;
  /// How the file calls a tensor.
  const std::string& name_in_file(const std::string& name) const { return entry(name).name_in_file; }

  /// The tensor, contiguous and in the dtype and device of `options` (those left open stay as stored; no copy
  /// when nothing changes), and marked as used. Error naming tensor and file when it is missing, when its
  /// shape is not `shape`, or when an integer tensor is asked for as floating point or the other way round.
  at::Tensor take(const std::string& name, at::IntArrayRef shape, at::TensorOptions options) const;

  /// How to read a matrix row by row that the file stores in few bits; null for every other tensor, and for
  /// one that an adapter changes.
  const FewBits* few_bits(const std::string& name) const;
  /// The same, marked as used; Error when there is such a tensor of another shape.
  const FewBits* take_few_bits(const std::string& name, at::IntArrayRef shape) const;

  /// Gives back the memory of a mapped tensor that is no longer needed: it is read from the file again if it
  /// is used after all. Does nothing for tensors that are not mapped.
  void release(const std::string& name) const;

  /// Error listing the tensors that nobody took, except those for which `ignore` says true.
  void expect_all_taken(const std::function<bool(std::string_view)>& ignore = {}) const;

  /// Adds a PEFT LoRA adapter directory (see load_adapter) to the tensors it names, computed in float32 and
  /// rounded once to their own dtype whenever they are asked for, so that merging costs no memory. Its module
  /// paths go through the same renaming as the weights. Error when a tensor of it matches nothing or has
  /// another shape; then nothing was changed. Call it before taking the tensors.
  void merge_adapter(const std::filesystem::path& dir);

  /// The same for several, and a model whose `head` is by its config its `embedding`. Where one changes
  /// either of them, they become two, as PEFT has it, and this returns true: there is a `head` of its own
  /// then.
  bool merge_adapters(const std::vector<std::filesystem::path>& dirs, const std::string& embedding,
                      const std::string& head);

  /// Size of a tensor, and of all together, in bytes.
  size_t bytes(const std::string& name) const { return entry(name).bytes(); }
  size_t bytes() const;

 private:
  using Change = std::function<at::Tensor(const at::Tensor&)>;
  struct Entry {
    at::Tensor tensor;  // of a lazy one only shape and dtype
    std::string file, name_in_file;
    std::vector<Change> changes = {};  // of the adapters, in order
    mutable bool used = false;
    bool mapped = false;
    std::optional<Lazy> lazy = {};

    at::Tensor value(at::ScalarType wanted) const;
    void check_shape(const std::string& name, at::IntArrayRef shape) const;
    size_t bytes() const { return lazy ? lazy->bytes : tensor.nbytes(); }
  };

  Weights() = default;
  void add_file(const std::filesystem::path& file);
  void add_index(const std::filesystem::path& index);
  std::string canonical(std::string_view file_name) const;
  const Entry& entry(const std::string& name) const;

  mutable std::map<std::string, Entry> entries_;  // take() adds to it when the checkpoint is a fresh one
  Rename rename_;
  std::function<at::Tensor(const std::string&, at::IntArrayRef)> make_;
  std::string source_;
};

}  // namespace glimpse
