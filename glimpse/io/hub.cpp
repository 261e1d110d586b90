#include "glimpse/io/hub.h"

#include <algorithm>
#include <iomanip>

#include "glimpse/base/ascii.h"
#include "glimpse/base/check.h"
#include "glimpse/base/json_file.h"
#include "glimpse/io/hub_connection.h"
#include "glimpse/io/hub_gguf.h"

namespace glimpse {
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr size_t kLargestListing = size_t{64} << 20, kLongestPath = 1024, kLongestPart = 240;
constexpr uint64_t kLargestFile = uint64_t{1} << 44;

// Stays within a folder that it is joined to.
bool stays_within(const std::string& name) {
  if (name.empty() || name.size() > kLongestPath || name.front() == '/' || name.back() == '/') return false;
  for (const char c : name)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F || c == '\\') return false;
  std::istringstream parts(name);
  for (std::string part; std::getline(parts, part, '/');)
    if (part.empty() || part == "." || part == ".." || part.size() > kLongestPart) return false;
  return true;
}

std::optional<uint64_t> size_of(const json& entry, const std::string& where) {
  const json& size = member(entry, "size");
  if (size.is_null()) return {};
  check(size.is_number_unsigned() && size.get<uint64_t>() <= kLargestFile, where, ": size ", size.dump(),
        " is none that a file has");
  return size.get<uint64_t>();
}

HubFile file_of(const json& entry, const std::string& where) {
  const json& name = member(entry, "rfilename");
  check(name.is_string(), where, ": an entry of siblings has no rfilename");
  HubFile file{name.get<std::string>(), {}, ""};
  check(stays_within(file.name), where, ": a file is called '", shown(file.name),
        "', which does not stay in its folder or is no name of a file: nothing is fetched");
  const std::string place = concat(where, ": ", shown(file.name));
  file.size = size_of(entry, place);
  const json &blob = member(entry, "blobId"), &large = member(entry, "lfs");
  const json& etag = large.is_object() ? member(large, "sha256") : blob;
  if (large.is_object() && !file.size) file.size = size_of(large, place);
  if (etag.is_string() && is_plain_name(etag)) file.etag = etag;
  return file;
}

bool ends_in(const std::string& name, std::initializer_list<const char*> endings) {
  return std::any_of(endings.begin(), endings.end(), [&](const char* e) { return name.ends_with(e); });
}

}  // namespace

HubOptions HubOptions::from_environment() {
  HubOptions options;
  if (const std::string endpoint = environment("HF_ENDPOINT"); !endpoint.empty()) options.endpoint = endpoint;
  while (options.endpoint.ends_with('/')) options.endpoint.pop_back();
  check(!web_origin(options.endpoint).empty() && options.endpoint.find_first_of("@?#") == std::string::npos,
        "HF_ENDPOINT: expected an address such as https://huggingface.co, got '", shown(options.endpoint),
        "'");
  options.offline = environment_flag("HF_HUB_OFFLINE") || environment_flag("TRANSFORMERS_OFFLINE");
  if (const std::string timeout = environment("HF_HUB_DOWNLOAD_TIMEOUT"); !timeout.empty()) {
    char* end = nullptr;
    options.stall_s = std::strtod(timeout.c_str(), &end);
    check(*end == 0 && options.stall_s >= 1 && options.stall_s <= 3600,
          "HF_HUB_DOWNLOAD_TIMEOUT: expected seconds from 1 to 3600, got '", shown(timeout), "'");
  }
  if (environment_flag("HF_HUB_DISABLE_IMPLICIT_TOKEN")) return options;
  for (const char* name : {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"})
    if (options.token.empty()) {
      options.token = trimmed(environment(name));
      options.token_from = name;
    }
  if (options.token.empty()) {
    fs::path file = environment_path("HF_TOKEN_PATH");
    if (file.empty()) file = hub_home() / "token";
    std::error_code ignored;
    if (fs::is_regular_file(file, ignored)) options.token = trimmed(read_text(file, 65536));
    options.token_from = file.string();
  }
  for (const char c : options.token)
    check(c > ' ' && c < 0x7F, "the token of ", options.token_from, " has a character that no token has");
  return options;
}

std::string HubOptions::host() const {
  const size_t begin = endpoint.find("://") + 3;
  return endpoint.substr(begin, endpoint.find('/', begin) - begin);
}

HubListing Hub::list(const HubId& id, const FetchWatch& watch, const std::stop_token& stop) const {
  check(!options_.offline, "model '", id.text(),
        "' cannot be asked for: HF_HUB_OFFLINE is set; unset it to use the network");
  HubConnection connection(options_, watch, stop);
  WebRequest request{concat(options_.endpoint, "/api/models/", id.repo, "/revision/",
                            web_escaped(id.revision), "?blobs=true")};
  request.largest_body = kLargestListing;
  const WebReply reply = connection.get(request, false, id.text());
  if (!reply.problem.empty() || reply.status != 200) refuse(options_, id, "", reply);

  const std::string where = concat(options_.host(), ": the listing of ", id.text());
  const json answer = parse_json(reply.body, where);
  const json &sha = member(answer, "sha"), &siblings = member(answer, "siblings");
  check(sha.is_string() && is_commit(sha), where, ": 'sha' is no commit; is HF_ENDPOINT a hub?");
  check(!is_commit(id.revision) || sha == id.revision, where, " is of another commit, ", shown(sha));
  check(siblings.is_array(), where, ": 'siblings' is no list of files");
  HubListing listing{id, sha, {}, {}};
  for (const json& entry : siblings) listing.files.push_back(file_of(entry, where));
  const json& base = member(member(answer, "cardData"), "base_model");
  for (const json& name : base.is_array() ? base : json::array({base}))
    if (name.is_string()) listing.base_models.push_back(name);
  return listing;
}

namespace {

// f(), with the model before what an Error of it says.
template <class Function>
auto named_model(const HubId& id, Function f) {
  try {
    return f();
  } catch (const Error& error) {
    fail("model '", id.text(), "': ", error.what());
  }
}

// The files of a listing's GGUF model; none where there is none.
std::vector<HubFile> gguf_files(const HubListing& listing) {
  std::vector<std::string> names;
  for (const HubFile& file : listing.files) names.push_back(file.name);
  const auto chosen = named_model(listing.id, [&] { return choose_gguf(names, listing.id.quantisation); });
  std::vector<HubFile> files;
  for (const HubFile& file : listing.files)
    if (chosen && (file.name == chosen->mmproj || std::ranges::count(chosen->parts, file.name) > 0))
      files.push_back(file);
  return files;
}

}  // namespace

std::vector<HubFile> needed_files(const HubListing& listing) {
  const auto has = [&](const auto& test) {
    return std::any_of(listing.files.begin(), listing.files.end(),
                       [&](const HubFile& file) { return test(file.name); });
  };
  const auto is_model = [](const std::string& name) {
    return name.starts_with("model") && name.ends_with(".safetensors");
  };
  const auto is_torch_model = [](const std::string& name) {
    return name.starts_with("pytorch_model") && ends_in(name, {".bin", ".bin.index.json"});
  };
  const bool model = has(is_model), whole = model || has(is_torch_model);
  const auto weights = [&](const std::string& name) {
    // Another layout of the same weights.
    if (name.ends_with(".safetensors")) return !name.starts_with("consolidated");
    if (is_torch_model(name)) return !model;
    for (const char* torch : {"new_modules_gp.pt", "adapter_model.bin"})
      if (name == torch) {
        const std::string stem = name.substr(0, name.rfind('.'));
        return !has([&](const std::string& other) { return other == stem + ".safetensors"; });
      }
    return false;
  };
  std::vector<HubFile> needed;
  bool any = false;
  for (const HubFile& file : listing.files) {
    const std::string& name = file.name;
    if (name.find('/') != name.npos || !is_plain_name(name)) continue;
    const bool settings = ends_in(name, {".json", ".txt", ".jinja", ".model"}) &&
                          name != "trainer_state.json" && !is_torch_model(name);
    const bool heavy = weights(name);
    any |= heavy && !name.ends_with(".json");
    if (settings || heavy || (!whole && name == "README.md")) needed.push_back(file);
  }
  if (!any || !listing.id.quantisation.empty()) needed = gguf_files(listing);
  check(!needed.empty(), "model '", listing.id.text(), "' has no weights that this program fetches ",
        listing.id.quantisation.empty() ? "(*.safetensors, pytorch_model*.bin, *.gguf)" : "(*.gguf)");
  return needed;
}

std::vector<HubFile> missing_files(const HubListing& listing, const std::vector<HubFile>& files) {
  const fs::path snapshot = repo_folder(listing.id.repo) / "snapshots" / listing.commit;
  std::vector<HubFile> missing;
  for (const HubFile& file : files) {
    std::error_code error;
    const uint64_t size = fs::file_size(snapshot / file.name, error);
    if (error || (file.size && size != *file.size)) missing.push_back(file);
  }
  return missing;
}

uint64_t total_size(const std::vector<HubFile>& files) {
  uint64_t bytes = 0;
  for (const HubFile& file : files) bytes += file.size.value_or(0);
  return bytes;
}

std::string size_text(uint64_t bytes) {
  std::ostringstream out;
  const bool large = bytes >= 1'000'000'000;
  out << std::fixed << std::setprecision(large ? 2 : 1) << static_cast<double>(bytes) / (large ? 1e9 : 1e6)
      << (large ? " GB" : " MB");
  return out.str();
}

}  // namespace glimpse
