#pragma once

#include <functional>
#include <stop_token>

#include "glimpse/io/hub_cache.h"

namespace glimpse {

/// Which hub, and as whom.
struct HubOptions {
  std::string endpoint = "https://huggingface.co";
  std::string token;       ///< is sent to the endpoint only
  std::string token_from;  ///< where it is from, for messages
  std::string agent = "glimpse";
  double stall_s = 10;  ///< a transfer without data for so long begins again
  bool offline = false;

  /// As the hub's own client reads them: HF_ENDPOINT, HF_TOKEN (or HUGGING_FACE_HUB_TOKEN), the file
  /// $HF_TOKEN_PATH or $HF_HOME/token, HF_HUB_DISABLE_IMPLICIT_TOKEN, HF_HUB_DOWNLOAD_TIMEOUT,
  /// HF_HUB_OFFLINE.
  static HubOptions from_environment();
  /// The host, for messages.
  std::string host() const;
};

/// A file of a repository.
struct HubFile {
  std::string name;
  std::optional<uint64_t> size;
  std::string etag;  ///< its blob's name, or "" if the listing does not say
};

/// What a repository holds at one commit.
struct HubListing {
  HubId id;
  std::string commit;
  std::vector<HubFile> files;
  std::vector<std::string> base_models;  ///< as its card names them
};

/// Of these files those that a program needs: settings, tokenizer, weights; of weights in several formats
/// safetensors; the card of what is no whole model. Where there are only GGUF files, or a quantisation is
/// named, those of one model (choose_gguf) with its vision encoder. Error when there are no weights.
std::vector<HubFile> needed_files(const HubListing& listing);
/// Those that are not in the cache.
std::vector<HubFile> missing_files(const HubListing& listing, const std::vector<HubFile>& files);
/// Bytes of these files, as far as sizes are known.
uint64_t total_size(const std::vector<HubFile>& files);
/// "4.08 GB", "12.0 MB".
std::string size_text(uint64_t bytes);

/// How far a fetch is.
struct FetchProgress {
  uint64_t bytes = 0, total = 0;
  size_t files = 0, all_files = 0;
  std::string name;  ///< of the file that got on
};

/// Who hears of a fetch. Calls come from several threads, one at a time.
struct FetchWatch {
  std::function<void(const FetchProgress&)> progress = [](const FetchProgress&) {};
  std::function<void(const std::string&)> note = [](const std::string&) {};  ///< waits, new tries
};

/// The Hugging Face hub: what is there, and fetching it into the cache in the layout of its own client
/// (huggingface_hub), so that either finds what the other fetched and waits for what it is fetching. Errors
/// say what to do next; one of the kind `cancelled` means that a stop was requested.
class Hub {
 public:
  explicit Hub(HubOptions options) : options_(std::move(options)) {}

  const HubOptions& options() const { return options_; }
  /// Asks for the files of a revision. Names that would not stay within a folder are an Error.
  HubListing list(const HubId& id, const FetchWatch& watch, const std::stop_token& stop) const;
  /// Fetches those of these files that are not there, several at once, and goes on where an earlier fetch
  /// ended. Sizes and hashes are checked; a file appears under its name when it is whole, and the revision
  /// when all are. Returns the snapshot's folder.
  std::filesystem::path fetch(const HubListing& listing, const std::vector<HubFile>& files,
                              const FetchWatch& watch, const std::stop_token& stop) const;

 private:
  HubOptions options_;
};

}  // namespace glimpse
