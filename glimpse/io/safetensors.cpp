#include "glimpse/io/safetensors.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "glimpse/base/atomic_file.h"
#include "glimpse/base/check.h"
#include "glimpse/base/json_file.h"
#include "glimpse/io/layout.h"
#include "glimpse/io/mapping.h"

namespace glimpse {
namespace {

constexpr uint64_t kMaxHeader = 100'000'000;
constexpr size_t kLengthBytes = 8;
constexpr size_t kAlign = 64;  // of written data: a cache line, and the widest register

struct Dtype {
  const char* name;
  at::ScalarType type;
};
constexpr Dtype kDtypes[] = {{"BF16", at::kBFloat16},
                             {"F16", at::kHalf},
                             {"F32", at::kFloat},
                             {"F64", at::kDouble},
                             {"I64", at::kLong},
                             {"I32", at::kInt},
                             {"I16", at::kShort},
                             {"I8", at::kChar},
                             {"U8", at::kByte},
                             {"BOOL", at::kBool},
                             {"F8_E4M3", at::kFloat8_e4m3fn}};

/// One entry of the header; offsets are from the end of the header.
struct Entry {
  std::string name;
  at::ScalarType dtype;
  std::vector<int64_t> shape;
  uint64_t begin, end;
};

nlohmann::json parse_header(const char* begin, const char* end, const std::string& file) {
  std::set<std::string> names;
  const auto on_event = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& value) {
    check(depth <= 4, file, ": the header is nested too deeply");
    if (event == nlohmann::json::parse_event_t::key && depth == 1)
      check(names.insert(value.get<std::string>()).second, file, ": tensor '", value.get<std::string>(),
            "' is listed twice");
    return true;
  };
  try {
    auto header = nlohmann::json::parse(begin, end, on_event);
    check(header.is_object(), file, ": the header is not a JSON object");
    return header;
  } catch (const nlohmann::json::exception& error) {
    fail(file, ": the safetensors header is not valid JSON: ", error.what());
  }
}

Entry parse_entry(const std::string& name, const nlohmann::json& value, const std::string& file) {
  const std::string what = concat(file, ": tensor '", name, "'");
  check(name.size() <= kMaxTensorName, file, ": a tensor name has ", name.size(), " bytes; at most ",
        kMaxTensorName, " are accepted");
  check(value.is_object() && value.contains("dtype") && value["dtype"].is_string() &&
            value.contains("shape") && value["shape"].is_array() && value.contains("data_offsets") &&
            value["data_offsets"].is_array() && value["data_offsets"].size() == 2,
        what, " needs a dtype, a shape and two data_offsets");
  const auto& dtype_name = value["dtype"].get_ref<const std::string&>();
  const auto dtype = std::find_if(std::begin(kDtypes), std::end(kDtypes),
                                  [&](const Dtype& d) { return d.name == dtype_name; });
  check(dtype != std::end(kDtypes), what, " has the unsupported dtype '", dtype_name, "'");

  // Numbers above the signed range become negative here and are refused with the negative ones.
  const auto number = [&](const nlohmann::json& n) {
    check(n.is_number_unsigned() && n.get<int64_t>() >= 0, what,
          ": shape and data_offsets must be non-negative integers, not ", n.dump().substr(0, 40));
    return n.get<int64_t>();
  };
  Entry entry{name, dtype->type, {}, 0, 0};
  for (const auto& size : value["shape"]) entry.shape.push_back(number(size));
  entry.begin = static_cast<uint64_t>(number(value["data_offsets"][0]));
  entry.end = static_cast<uint64_t>(number(value["data_offsets"][1]));
  const uint64_t bytes = checked_numel(entry.shape, what) * c10::elementSize(entry.dtype);
  check(entry.begin <= entry.end && entry.end - entry.begin == bytes, what, " of shape ",
        shape_text(entry.shape), " and dtype ", dtype_name, " needs ", bytes,
        " bytes, but its data_offsets are [", entry.begin, ", ", entry.end, "]");
  return entry;
}

/// Error unless the entries cover the data without gap or overlap, as the format demands.
void check_coverage(std::vector<Entry>& entries, uint64_t header_end, uint64_t file_size,
                    const std::string& file) {
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  uint64_t end = 0;
  for (const Entry& entry : entries) {
    check(entry.begin == end, file, ": tensor '", entry.name, "' begins at offset ", entry.begin,
          ", but the data ", entry.begin < end ? "before it reaches to " : "before it ends at ", end);
    end = entry.end;
  }
  check(file_size >= header_end + end, file, " is truncated: its header promises ", header_end + end,
        " bytes, the file has ", file_size);
  check(file_size == header_end + end, file, " has unexpected data at its end: its header promises ",
        header_end + end, " bytes, the file has ", file_size);
}

at::Tensor make_tensor(const Entry& entry, char* data, const std::shared_ptr<Mapping>& mapping) {
  const size_t bytes = entry.end - entry.begin;
  const auto options = at::TensorOptions().dtype(entry.dtype);
  if (reinterpret_cast<uintptr_t>(data) % c10::elementSize(entry.dtype) == 0)
    return at::from_blob(
        data, entry.shape, [mapping](void*) {}, options);
  at::Tensor copy = at::empty(entry.shape, options);
  if (bytes > 0) std::memcpy(copy.mutable_data_ptr(), data, bytes);
  return copy;
}

}  // namespace

Safetensors load_safetensors(const std::filesystem::path& path) {
  const std::string file = path.string();
  const auto mapping = std::make_shared<Mapping>(path);
  check(mapping->size() >= kLengthBytes, file, " is truncated: ", mapping->size(),
        " bytes are too few for a safetensors file");
  uint64_t header_size = 0;
  for (size_t i = kLengthBytes; i-- > 0;)
    header_size = header_size << 8 | static_cast<uint8_t>(mapping->data()[i]);
  check(header_size <= kMaxHeader, file, " is not a safetensors file: its header would have ", header_size,
        " bytes");
  const uint64_t header_end = kLengthBytes + header_size;
  check(header_end <= mapping->size(), file, " is truncated: its header ends at byte ", header_end,
        ", the file has ", mapping->size());

  Safetensors result;
  std::vector<Entry> entries;
  const auto header = parse_header(mapping->data() + kLengthBytes, mapping->data() + header_end, file);
  for (const auto& [name, value] : header.items()) {
    if (name != "__metadata__") {
      entries.push_back(parse_entry(name, value, file));
      continue;
    }
    check(value.is_object(), file, ": __metadata__ is not an object");
    for (const auto& [key, text] : value.items()) {
      check(text.is_string(), file, ": __metadata__ '", key, "' is not a string");
      result.metadata[key] = text.get<std::string>();
    }
  }
  check_coverage(entries, header_end, mapping->size(), file);
  for (const Entry& entry : entries) {
    char* data = mapping->data() + header_end + entry.begin;
    if (entry.dtype == at::kBool)
      check_bools(data, entry.end - entry.begin, concat(file, ": tensor '", entry.name, "'"));
    result.tensors.emplace(entry.name, make_tensor(entry, data, mapping));
  }
  return result;
}

void save_safetensors(const std::filesystem::path& path, const std::map<std::string, at::Tensor>& tensors,
                      const std::map<std::string, std::string>& metadata) {
  // The format has no room between tensors. Behind a padded header those that fill whole lines begin on lines
  // when they come first; large elements first, the others are aligned to their element size.
  std::vector<std::pair<std::string, at::Tensor>> ordered(tensors.begin(), tensors.end());
  const auto place = [](const at::Tensor& tensor) {
    return std::pair(tensor.nbytes() % kAlign != 0, -tensor.element_size());
  };
  std::stable_sort(ordered.begin(), ordered.end(),
                   [&](const auto& a, const auto& b) { return place(a.second) < place(b.second); });
  nlohmann::json header = nlohmann::json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  size_t offset = 0;
  for (const auto& [name, tensor] : ordered) {
    const auto dtype = std::find_if(std::begin(kDtypes), std::end(kDtypes),
                                    [type = tensor.scalar_type()](const Dtype& d) { return d.type == type; });
    check(dtype != std::end(kDtypes), "cannot save tensor '", name, "' to ", path.string(), ": dtype ",
          tensor.scalar_type(), " is not supported");
    check(name != "__metadata__" && name.size() <= kMaxTensorName, "cannot save a tensor named '", name,
          "' to ", path.string());
    header[name] = {{"dtype", dtype->name},
                    {"shape", tensor.sizes().vec()},
                    {"data_offsets", {offset, offset + tensor.nbytes()}}};
    offset += tensor.nbytes();
  }
  std::string text = header.dump();
  text.append(kAlign - 1 - (kLengthBytes + text.size() + kAlign - 1) % kAlign, ' ');

  AtomicFile file(path);
  for (size_t i = 0; i < kLengthBytes; ++i) file.stream().put(static_cast<char>(text.size() >> 8 * i));
  file.stream() << text;
  for (const auto& [name, tensor] : ordered) {
    const at::Tensor dense = tensor.detach().to(at::kCPU).contiguous();
    file.stream().write(static_cast<const char*>(dense.const_data_ptr()),
                        static_cast<std::streamsize>(dense.nbytes()));
  }
  file.commit();
}

}  // namespace glimpse
