#include "glimpse/io/gguf.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <iomanip>
#include <regex>
#include <sstream>
#include <string_view>

#include "glimpse/base/check.h"
#include "glimpse/io/layout.h"

namespace glimpse {
namespace {

using nlohmann::json;

constexpr uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr uint64_t kMaxItems =
    1 << 24;  // of all lists of the metadata together: they take more memory than file
constexpr uint64_t kMaxText = 1 << 24, kMaxKeys = 1 << 16, kMaxTensors = 1 << 20;

/// Value types of the metadata.
enum class Kind : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, text, list, u64, i64, f64 };

/// Bytes of a value of a fixed size; for a text those of its length, for a list those of its kind and its
/// count.
uint64_t least_size(Kind kind, const std::string& what) {
  switch (kind) {
    case Kind::u8:
    case Kind::i8:
    case Kind::boolean:
      return 1;
    case Kind::u16:
    case Kind::i16:
      return 2;
    case Kind::u32:
    case Kind::i32:
    case Kind::f32:
      return 4;
    case Kind::u64:
    case Kind::i64:
    case Kind::f64:
    case Kind::text:
      return 8;
    case Kind::list:
      return 12;
  }
  fail(what, " has the unknown value type ", static_cast<uint32_t>(kind));
}

/// The shortest decimal number that is this float32.
double decimal(float value) {
  if (!std::isfinite(value)) return value;
  char text[64];
  const char* const end = std::to_chars(text, text + sizeof text, value).ptr;
  double result = 0;
  std::from_chars(text, end, result);
  return result;
}

/// Reads the file from its begin, never past its end.
class Reader {
 public:
  Reader(const Mapping& mapping, const std::string& file) : mapping_(mapping), file_(file) {}

  uint64_t at() const { return at_; }
  uint64_t left() const { return mapping_.size() - at_; }

  template <class T>
  T number() {
    T value;
    std::memcpy(&value, take(sizeof value), sizeof value);
    return value;
  }

  std::string text(uint64_t most, const char* what) {
    const auto size = number<uint64_t>();
    check(size <= most, file_, ": ", what, " at byte ", at_ - sizeof size, " would have ", size,
          " bytes, at most ", most, " are accepted");
    const char* const begin = take(size);
    return {begin, size};
  }

  /// A count of things of at least `each` bytes.
  uint64_t count(uint64_t each, uint64_t most, const std::string& what) {
    const auto value = number<uint64_t>();
    check(value <= most, file_, ": ", value, " ", what, ", at most ", most, " are accepted");
    check(value <= left() / each, file_, " is truncated: ", value, " ", what, " do not fit into the ", left(),
          " bytes that are left");
    return value;
  }

  json value(Kind kind, const std::string& what) {
    switch (kind) {
      case Kind::u8:
        return number<uint8_t>();
      case Kind::i8:
        return number<int8_t>();
      case Kind::u16:
        return number<uint16_t>();
      case Kind::i16:
        return number<int16_t>();
      case Kind::u32:
        return number<uint32_t>();
      case Kind::i32:
        return number<int32_t>();
      case Kind::u64:
        return number<uint64_t>();
      case Kind::i64:
        return number<int64_t>();
      case Kind::f32:
        return decimal(number<float>());
      case Kind::f64:
        return number<double>();
      case Kind::text:
        return text(kMaxText, "a text");
      case Kind::boolean: {
        const auto byte = number<uint8_t>();
        check(byte <= 1, what, " is a bool stored as ", int{byte});
        return byte == 1;
      }
      case Kind::list:
        return list(what);
    }
    fail(what, " has the unknown value type ", static_cast<uint32_t>(kind));
  }

 private:
  json list(const std::string& what) {
    const auto kind = static_cast<Kind>(number<uint32_t>());
    check(kind != Kind::list, what, " is a list of lists, which is not supported");
    const uint64_t size = count(least_size(kind, what), kMaxItems - items_, "items of the metadata's lists");
    items_ += size;
    json::array_t items;
    items.reserve(size);
    for (uint64_t i = 0; i < size; ++i) items.push_back(value(kind, what));
    return items;
  }

  const char* take(uint64_t size) {
    check(size <= left(), file_, " is truncated: ", size, " bytes expected at byte ", at_, ", the file has ",
          mapping_.size());
    const char* const begin = mapping_.data() + at_;
    at_ += size;
    return begin;
  }

  const Mapping& mapping_;
  const std::string& file_;
  uint64_t at_ = 0, items_ = 0;
};

/// The description of a tensor; its offset is still that from the begin of the data.
Gguf::Entry read_entry(Reader& reader, const std::string& what) {
  Gguf::Entry entry{};
  const auto dimensions = reader.number<uint32_t>();
  check(dimensions >= 1 && dimensions <= 4, what, " has ", dimensions, " dimensions, expected 1 to 4");
  for (uint32_t i = 0; i < dimensions; ++i) {
    const auto size = reader.number<uint64_t>();
    check(size >= 1 && size <= uint64_t{1} << 40, what, " has the size ", size);
    entry.shape.insert(entry.shape.begin(), static_cast<int64_t>(size));
  }
  entry.type = &gguf_type(reader.number<uint32_t>(), what);
  const int64_t count = checked_numel(entry.shape, what), row = entry.shape.back();
  check(row % entry.type->values == 0, what, " of shape ", shape_text(entry.shape), " and type ",
        entry.type->name, " needs rows of a multiple of ", entry.type->values, " values");
  entry.bytes = static_cast<uint64_t>(count / entry.type->values) * static_cast<uint64_t>(entry.type->bytes);
  entry.begin = reader.number<uint64_t>();
  return entry;
}

uint64_t alignment_of(const json& metadata, const std::string& file) {
  const auto found = metadata.find("general.alignment");
  if (found == metadata.end()) return 32;
  const uint64_t alignment = found->is_number_unsigned() ? found->get<uint64_t>() : 0;
  check(alignment >= 1 && alignment <= 1 << 20 && (alignment & (alignment - 1)) == 0, file,
        ": general.alignment must be a power of two");
  return alignment;
}

/// A number about the parts of a split file; 0 when it is not there.
uint64_t split_number(const json& metadata, const char* key, const std::string& file) {
  const auto found = metadata.find(key);
  if (found == metadata.end()) return 0;
  check(found->is_number_unsigned() || (found->is_number_integer() && found->get<int64_t>() >= 0), file,
        ": metadata '", key, "' is no number");
  return found->get<uint64_t>();
}

/// Error when two tensors share bytes.
void check_no_overlap(const std::map<std::string, Gguf::Entry>& entries, const std::string& file) {
  std::vector<std::pair<const std::string*, const Gguf::Entry*>> ordered;
  for (const auto& [name, entry] : entries) ordered.emplace_back(&name, &entry);
  std::sort(ordered.begin(), ordered.end(),
            [](const auto& a, const auto& b) { return a.second->begin < b.second->begin; });
  for (size_t i = 1; i < ordered.size(); ++i) {
    const auto& [name, entry] = ordered[i - 1];
    check(entry->begin + entry->bytes <= ordered[i].second->begin, file, ": the tensors '", *name, "' and '",
          *ordered[i].first, "' overlap");
  }
}

}  // namespace

std::vector<std::filesystem::path> gguf_parts(const std::filesystem::path& first) {
  const std::string name = first.filename().string();
  std::smatch numbers;
  static const std::regex pattern("(.*-)00001(-of-(\\d{5})\\.gguf)");
  if (!std::regex_match(name, numbers, pattern)) return {first};
  const int count = std::stoi(numbers[3]);
  std::vector<std::filesystem::path> parts = {first};
  for (int part = 2; part <= count; ++part) {
    std::ostringstream number;
    number << std::setw(5) << std::setfill('0') << part;
    parts.push_back(first.parent_path() / concat(numbers[1].str(), number.str(), numbers[2].str()));
  }
  return parts;
}

Gguf Gguf::open(const std::filesystem::path& path) {
  const auto content = read_part(path);
  const std::string& file = content->file;
  const uint64_t count = split_number(content->metadata, "split.count", file);
  if (count <= 1) return Gguf(content);
  check(split_number(content->metadata, "split.no", file) == 0, file,
        " is one part of several, and not the first; name that one");
  const auto paths = gguf_parts(path);
  check(
      paths.size() == count, file, " is the first part of ", count,
      ", but not named so: parts keep the names that llama-gguf-split gives them, NAME-00001-of-0000N.gguf");
  for (size_t i = 1; i < count; ++i) {
    const auto part = read_part(paths[i]);
    check(split_number(part->metadata, "split.no", part->file) == i &&
              split_number(part->metadata, "split.count", part->file) == count,
          part->file, " is not part ", i + 1, " of ", count, " of ", file);
    content->parts.push_back(part->parts[0]);
    for (auto& [name, entry] : part->entries) {
      entry.part = i;
      check(content->entries.emplace(name, entry).second, part->file, ": tensor '", name,
            "' is in another part, too");
    }
  }
  const uint64_t tensors = split_number(content->metadata, "split.tensors.count", file);
  check(tensors == 0 || tensors == content->entries.size(), file, " is of a model of ", tensors,
        " tensors, but its parts have ", content->entries.size());
  return Gguf(content);
}

std::shared_ptr<Gguf::Content> Gguf::read_part(const std::filesystem::path& path) {
  auto content = std::make_shared<Content>();
  const std::string& file = content->file = path.string();
  const auto mapping = std::make_shared<Mapping>(path);
  content->parts = {mapping};
  Reader reader(*mapping, file);
  check(reader.left() >= 4 && reader.number<uint32_t>() == kMagic, file, " is not a GGUF file");
  const auto version = reader.number<uint32_t>();
  check((version & 0xffff) != 0, file, " is a big-endian GGUF file, which is not supported");
  check(version == 2 || version == 3, file, " is a GGUF file of version ", version,
        ", only 2 and 3 are supported");

  const uint64_t tensors = reader.count(24, kMaxTensors, "tensors"),
                 keys = reader.count(12, kMaxKeys, "metadata keys");
  for (uint64_t i = 0; i < keys; ++i) {
    const std::string key = reader.text(kMaxTensorName, "a metadata key");
    const std::string what = concat(file, ": metadata '", key, "'");
    check(!content->metadata.contains(key), what, " is there twice");
    const auto kind = static_cast<Kind>(reader.number<uint32_t>());
    content->metadata[key] = reader.value(kind, what);
  }
  for (uint64_t i = 0; i < tensors; ++i) {
    std::string name = reader.text(kMaxTensorName, "a tensor's name");
    const std::string what = concat(file, ": tensor '", name, "'");
    const Entry entry = read_entry(reader, what);
    check(content->entries.emplace(std::move(name), entry).second, what, " is there twice");
  }
  const uint64_t alignment = alignment_of(content->metadata, file);
  const uint64_t data = (reader.at() + alignment - 1) / alignment * alignment;
  for (auto& [name, entry] : content->entries) {
    check(entry.begin % alignment == 0, file, ": tensor '", name, "' begins at offset ", entry.begin,
          ", which is no multiple of ", alignment);
    const uint64_t size = mapping->size() > data ? mapping->size() - data : 0;
    check(entry.begin <= size && entry.bytes <= size - entry.begin, file, " is truncated: tensor '", name,
          "' of ", entry.bytes, " bytes begins at ", entry.begin, " of ", size, " bytes of data");
    entry.begin += data;
  }
  check_no_overlap(content->entries, file);
  return content;
}

at::Tensor Gguf::read(const std::string& name, at::ScalarType dtype) const {
  const Entry& entry = content_->entries.at(name);
  const auto& mapping = content_->parts[entry.part];
  char* const data = mapping->data() + entry.begin;
  if (!entry.type->read_block && entry.type->dtype == dtype &&
      reinterpret_cast<uintptr_t>(data) % c10::elementSize(dtype) == 0)
    return at::from_blob(
        data, entry.shape, [mapping](void*) {}, at::TensorOptions(dtype));
  const at::Tensor values =
      read_gguf_blocks(*entry.type, reinterpret_cast<const uint8_t*>(data), checked_numel(entry.shape, name),
                       dtype, concat(file(), ": tensor '", name, "'"));
  release(name);
  return values.view(entry.shape);
}

std::optional<FewBits> Gguf::few_bits(const std::string& name) const {
  const Entry& entry = content_->entries.at(name);
  const auto& mapping = content_->parts[entry.part];
  return gguf_few_bits(*entry.type, reinterpret_cast<const uint8_t*>(mapping->data()) + entry.begin,
                       entry.shape, concat(file(), ": tensor '", name, "'"), mapping);
}

void Gguf::release(const std::string& name) const {
  const Entry& entry = content_->entries.at(name);
  Mapping::release(content_->parts[entry.part]->data() + entry.begin, entry.bytes);
}

}  // namespace glimpse
