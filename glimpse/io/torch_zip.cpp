#include "glimpse/io/torch_zip.h"

#include <zip.h>

#include <memory>
#include <set>
#include <string_view>
#include <unordered_map>

#include "glimpse/base/check.h"
#include "glimpse/base/json_file.h"
#include "glimpse/io/layout.h"
#include "glimpse/io/pickle.h"

namespace glimpse {
namespace {

constexpr uint64_t kMaxPickle = 64 << 20;

/// The uncompressed entries of a zip file. torch.save never compresses, so all entries together are at most
/// as long as the file: that bounds what a hostile file can make us read.
class Archive {
 public:
  explicit Archive(const std::filesystem::path& path) : file_(path.string()) {
    check_is_file(path);
    budget_ = std::filesystem::file_size(path);
    int error = 0;
    zip_.reset(zip_open(file_.c_str(), ZIP_RDONLY, &error));
    check(zip_ != nullptr, file_,
          " is damaged or not a torch.save file of PyTorch 1.6 or later (it is no readable zip archive)");
    const auto entries = zip_get_num_entries(zip_.get(), 0);
    for (zip_int64_t i = 0; i < entries; ++i) {
      const char* raw = zip_get_name(zip_.get(), static_cast<zip_uint64_t>(i), ZIP_FL_ENC_RAW);
      const std::string_view name = raw == nullptr ? "" : raw;
      if (name != "data.pkl" && !name.ends_with("/data.pkl")) continue;
      check(pickle_.empty(), file_, " holds two pickles, '", pickle_, "' and '", name, "'");
      pickle_ = name;
    }
    check(!pickle_.empty(), file_, " is a zip archive, but not one of torch.save: it has no data.pkl");
  }

  bool contains(const std::string& name) const { return find(name) >= 0; }

  /// The bytes [n] of the entry `name` beside data.pkl.
  at::Tensor read(const std::string& name, uint64_t max_size = UINT64_MAX) {
    const zip_int64_t index = find(name);
    const std::string what = concat(file_, ": entry '", name, "'");
    check(index >= 0, what, " is missing");
    zip_stat_t info;
    zip_stat_init(&info);
    constexpr zip_uint64_t kNeeded = ZIP_STAT_SIZE | ZIP_STAT_COMP_METHOD | ZIP_STAT_ENCRYPTION_METHOD;
    check(zip_stat_index(zip_.get(), static_cast<zip_uint64_t>(index), 0, &info) == 0 &&
              (info.valid & kNeeded) == kNeeded && info.comp_method == ZIP_CM_STORE &&
              info.encryption_method == ZIP_EM_NONE,
          what, " is compressed or encrypted, which torch.save never does");
    check(info.size <= max_size, what, " has ", info.size, " bytes; at most ", max_size, " are accepted");
    check(info.size <= budget_, what, " has ", info.size, " bytes, more than is left of the file");
    budget_ -= info.size;

    const std::unique_ptr<zip_file_t, int (*)(zip_file_t*)> entry(
        zip_fopen_index(zip_.get(), static_cast<zip_uint64_t>(index), 0), zip_fclose);
    check(entry != nullptr, what, " cannot be read: ", zip_strerror(zip_.get()));
    at::Tensor bytes = at::empty({static_cast<int64_t>(info.size)}, at::kByte);
    // Asking for one byte more makes libzip see the end and compare the checksum.
    auto* data = static_cast<uint8_t*>(bytes.mutable_data_ptr());
    char beyond = 0;
    const bool complete = read_all(entry.get(), data, info.size) && zip_fread(entry.get(), &beyond, 1) == 0;
    check(complete, what, " is damaged: ", zip_file_strerror(entry.get()));
    return bytes;
  }

  const std::string& file() const { return file_; }

 private:
  static bool read_all(zip_file_t* entry, uint8_t* data, uint64_t size) {
    while (size > 0) {
      const zip_int64_t got = zip_fread(entry, data, size);
      if (got <= 0) return false;
      data += got;
      size -= static_cast<uint64_t>(got);
    }
    return true;
  }

  zip_int64_t find(const std::string& name) const {
    const std::string path = pickle_.substr(0, pickle_.size() - std::string_view("data.pkl").size()) + name;
    return zip_name_locate(zip_.get(), path.c_str(), ZIP_FL_ENC_RAW);
  }

  std::string file_;
  std::string pickle_;
  uint64_t budget_ = 0;
  std::unique_ptr<zip_t, void (*)(zip_t*)> zip_{nullptr, zip_discard};
};

std::string_view text(const at::Tensor& bytes) {
  return {static_cast<const char*>(bytes.const_data_ptr()), static_cast<size_t>(bytes.numel())};
}

}  // namespace

std::map<std::string, at::Tensor> load_torch_zip(const std::filesystem::path& path) {
  Archive archive(path);
  if (archive.contains("byteorder")) {
    const at::Tensor order = archive.read("byteorder", 16);
    check(text(order) == "little", archive.file(), " has the byte order '", text(order),
          "'; expected 'little'");
  }
  std::unordered_map<std::string, at::Tensor> storages;
  const auto load_storage = [&](const std::string& key) {
    at::Tensor& bytes = storages[key];
    if (!bytes.defined()) bytes = archive.read("data/" + key);
    return bytes;
  };
  const at::Tensor pickle = archive.read("data.pkl", kMaxPickle);
  auto tensors = unpickle_tensors(text(pickle), load_storage, archive.file());
  // Names may share a storage: look at each one once.
  std::set<const void*> checked;
  for (const auto& [name, tensor] : tensors)
    if (const auto& storage = tensor.storage();
        tensor.scalar_type() == at::kBool && checked.insert(storage.data()).second)
      check_bools(storage.data(), storage.nbytes(), concat(archive.file(), ": tensor '", name, "'"));
  return tensors;
}

}  // namespace glimpse
