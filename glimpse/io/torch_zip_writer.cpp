#include <caffe2/serialize/inline_container.h>

#include <algorithm>
#include <bit>

#include "glimpse/base/atomic_file.h"
#include "glimpse/base/check.h"
#include "glimpse/io/layout.h"
#include "glimpse/io/pickle.h"
#include "glimpse/io/torch_zip.h"

namespace glimpse {
namespace {

static_assert(std::endian::native == std::endian::little);

std::string little_endian(uint64_t value, size_t bytes) {
  return {reinterpret_cast<const char*>(&value), bytes};
}

// Values of pickle protocol 2, each as the opcodes that put it on the stack.
std::string text(std::string_view value) {
  return concat("X", little_endian(value.size(), 4), value);
}

std::string integer(int64_t value) {
  return concat("\x8a\x08", little_endian(static_cast<uint64_t>(value), 8));
}

std::string integers(at::IntArrayRef values) {
  std::string code = "(";
  for (const int64_t value : values) code += integer(value);
  return code + "t";
}

/// The object `name` of a Python module, as "module.name".
std::string global(std::string_view path) {
  const size_t dot = path.rfind('.');
  return concat("c", path.substr(0, dot), "\n", path.substr(dot + 1), "\n");
}

std::string ordered_dict() {
  return global("collections.OrderedDict") + ")R";
}

/// A contiguous tensor that is the whole storage `key`.
std::string tensor_code(const at::Tensor& tensor, const std::string& key, std::string_view storage_type) {
  const std::string storage = concat("(", text("storage"), global(storage_type), text(key), text("cpu"),
                                     integer(tensor.numel()), "tQ");
  return concat(global("torch._utils._rebuild_tensor_v2"), "(", storage, integer(0), integers(tensor.sizes()),
                integers(tensor.strides()), "\x89", ordered_dict(), "tR");
}

/// The program that rebuilds the dictionary, with the i-th tensor in storage i.
std::string pickle(const std::map<std::string, at::Tensor>& tensors, const std::vector<std::string>& dicts,
                   const std::string& file) {
  std::map<std::string, std::string> lone, items;  // code of the tensors without a dot; of the dicts' items
  for (const std::string& dict : dicts) items[dict];
  size_t storage = 0;
  for (const auto& [name, tensor] : tensors) {
    const std::string what = concat("cannot save tensor '", name, "' to ", file);
    check(!name.empty() && name.size() <= kMaxTensorName, what, ": the name has ", name.size(),
          " bytes; expected 1 to ", kMaxTensorName);
    const auto type =
        std::find_if(storage_types().begin(), storage_types().end(),
                     [dtype = tensor.scalar_type()](const auto& each) { return each.second == dtype; });
    check(type != storage_types().end(), what, ": dtype ", tensor.scalar_type(), " is not supported");
    const std::string code = tensor_code(tensor, std::to_string(storage++), type->first);
    const size_t dot = name.find('.');
    if (dot == std::string::npos)
      lone[name] = code;
    else
      items[name.substr(0, dot)] += text(name.substr(dot + 1)) + code;
  }
  std::string program = "\x80\x02}(";
  for (const auto& [name, code] : lone) {
    check(!items.contains(name), "cannot save tensor '", name, "' to ", file,
          ": that name is a dictionary of tensors too");
    program += text(name) + code;
  }
  for (const auto& [name, code] : items) program += concat(text(name), ordered_dict(), "(", code, "u");
  return program + "u.";
}

}  // namespace

void save_torch_zip(const std::filesystem::path& path, const std::map<std::string, at::Tensor>& tensors,
                    const std::vector<std::string>& dicts) {
  std::map<std::string, at::Tensor> dense;
  for (const auto& [name, tensor] : tensors) dense[name] = tensor.detach().to(at::kCPU).contiguous();
  const std::string program = pickle(dense, dicts, path.string());

  AtomicFile file(path);
  // What could not be written shows in the stream's state, which commit() checks.
  caffe2::serialize::PyTorchStreamWriter writer([&](const void* data, size_t size) {
    file.stream().write(static_cast<const char*>(data), static_cast<std::streamsize>(size));
    return size;
  });
  writer.writeRecord("data.pkl", program.data(), program.size());
  writer.writeRecord("byteorder", "little", 6);
  size_t storage = 0;
  for (const auto& [name, tensor] : dense)
    writer.writeRecord(concat("data/", storage++), tensor.const_data_ptr(), tensor.nbytes());
  writer.writeEndOfFile();
  file.commit();
}

}  // namespace glimpse
