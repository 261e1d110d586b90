#pragma once

#include <mutex>
#include <vector>

#include "glimpse/io/hub_connection.h"

namespace glimpse {

/// How far the threads of a fetch are, together, for its watch.
class FetchReport {
 public:
  FetchReport(const FetchWatch& watch, const std::vector<HubFile>& files);
  FetchReport(const FetchReport&) = delete;

  /// `bytes` more, or fewer, of a file are there.
  void got(const std::string& name, int64_t bytes);
  void finished(const std::string& name);
  /// The watch, for several threads.
  const FetchWatch& watch() const { return locked_; }

 private:
  const FetchWatch& watch_;
  FetchWatch locked_;
  std::mutex mutex_;
  FetchProgress progress_;
};

/// Brings one file of a listing into the cache: its blob, and its name in the snapshot.
void fetch_file(HubConnection& connection, const HubListing& listing, const HubFile& file,
                FetchReport& report);

/// Makes a folder and those above it. Error naming it.
void make_folder(const std::filesystem::path& folder);
/// What a disk has room for.
uint64_t free_bytes(const std::filesystem::path& folder);

}  // namespace glimpse
