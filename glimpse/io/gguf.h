#pragma once

#include <ATen/ATen.h>

#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "glimpse/io/gguf_blocks.h"
#include "glimpse/io/mapping.h"

namespace glimpse {

/// The files of a model that starts with this one: its own, or all N of NAME-00001-of-0000N.gguf, as
/// llama-gguf-split names the parts of a split one.
std::vector<std::filesystem::path> gguf_parts(const std::filesystem::path& first);

/// A GGUF file (versions 2 and 3, little-endian), or a split one by its first part: metadata and tensors,
/// memory-mapped. Cheap to copy.
class Gguf {
 public:
  struct Entry {
    const GgufType* type;
    std::vector<int64_t> shape;  ///< outermost size first, other than in the file
    uint64_t begin, bytes;       ///< of the data, in its file
    size_t part = 0;             ///< which of several files it is in
  };

  /// Error naming the file and what is wrong in it: every count, length, size and offset is checked against
  /// the file's size before anything is read or allocated.
  static Gguf open(const std::filesystem::path& path);

  /// The file's name, for errors; of the first of several.
  const std::string& file() const { return content_->file; }
  /// One flat object, by key. Numbers of type float32 are the decimal numbers that they were written for
  /// (1e-6, not 9.99999997e-07); texts may hold any bytes.
  const nlohmann::json& metadata() const { return content_->metadata; }
  const std::map<std::string, Entry>& entries() const { return content_->entries; }

  /// The tensor in `dtype` (float32, bfloat16 or float16): the file's memory if it is stored so, else
  /// converted (see read_gguf_blocks), and the pages of the file that were read for it are given back.
  at::Tensor read(const std::string& name, at::ScalarType dtype) const;
  /// How to read a matrix of a type that is not plain row by row; nothing for other tensors.
  std::optional<FewBits> few_bits(const std::string& name) const;
  /// Gives back the pages of the file that hold this tensor; they are read again when they are used after
  /// all.
  void release(const std::string& name) const;

 private:
  struct Content {
    std::string file;
    nlohmann::json metadata = nlohmann::json::object();
    std::map<std::string, Entry> entries;
    std::vector<std::shared_ptr<const Mapping>> parts;
  };
  static std::shared_ptr<Content> read_part(const std::filesystem::path& path);
  explicit Gguf(std::shared_ptr<const Content> content) : content_(std::move(content)) {}

  std::shared_ptr<const Content> content_;  // shared by all copies: vocabularies are large
};

}  // namespace glimpse
