#include "glimpse/io/file_fetch.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>

#include "glimpse/base/check.h"
#include "glimpse/io/blob_lock.h"
#include "glimpse/io/digest.h"

namespace glimpse {
namespace fs = std::filesystem;

namespace {

constexpr uint64_t kBlock = uint64_t{1} << 20;
// Less than this between two breaks of a connection is no progress.
constexpr uint64_t kRenewing = uint64_t{1} << 20;

std::optional<uint64_t> number(const std::string& text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || text.empty()) return {};
  return value;
}

/// One file of a listing on its way into the cache.
class FileFetch {
 public:
  FileFetch(HubConnection& connection, const HubListing& listing, const HubFile& file, FetchReport& report)
      : connection_(connection),
        options_(connection.options()),
        listing_(listing),
        file_(file),
        report_(report),
        url_(concat(options_.endpoint, "/", listing.id.repo, "/resolve/", listing.commit, "/",
                    web_escaped(file.name))),
        folder_(repo_folder(listing.id.repo)) {}

  void run() {
    ask();
    const fs::path locks = lock_folder(listing_.id.repo);
    make_folder(folder_ / "blobs");
    make_folder(locks);
    const BlobLock lock(locks / (etag_ + ".lock"), report_.watch(), file_.name, connection_.stop());
    const fs::path blob = folder_ / "blobs" / etag_;
    std::error_code error;
    if (const uint64_t there = fs::file_size(blob, error); error || there != size_)
      download(blob);
    else
      report_.got(file_.name, static_cast<int64_t>(size_));
    link(blob);
    report_.finished(file_.name);
  }

 private:
  [[noreturn]] void changed(const std::string& what) const {
    fail(listing_.id.repo, ": ", file_.name, ": ", what,
         ": what the hub has changed while it was fetched, or something on the way answers in its place. Try "
         "again.");
  }

  // What the file is called and how long it is.
  void ask() {
    const WebReply reply = connection_.get({.url = url_, .head = true}, true, file_.name);
    const bool elsewhere = reply.status >= 300 && reply.status < 400;
    if (!reply.problem.empty() || (reply.status != 200 && !elsewhere))
      refuse(options_, listing_.id, file_.name, reply);
    const std::string& commit = reply.header("x-repo-commit");
    check(
        !commit.empty(), listing_.id.repo, ": ", file_.name, ": ", options_.host(),
        " does not say of which commit it is (X-Repo-Commit); is HF_ENDPOINT a hub, or does a proxy answer?");
    if (commit != listing_.commit)
      changed(concat("it comes from commit ", shown(commit), ", not ", listing_.commit));
    const std::string &linked = reply.header("x-linked-etag"),
                      &length =
                          reply.header(reply.header("x-linked-size").empty() && !elsewhere ? "content-length"
                                                                                           : "x-linked-size");
    etag_ = linked.empty() ? reply.header("etag") : linked;
    if (etag_.starts_with("W/")) etag_.erase(0, 2);
    std::erase(etag_, '"');
    check(is_plain_name(etag_), listing_.id.repo, ": ", file_.name, ": its ETag '", shown(etag_),
          "' is no name for a file");
    if (!file_.etag.empty() && etag_ != file_.etag) changed("its hash is not that of the listing");
    const std::optional<uint64_t> size = length.empty() ? file_.size : number(length);
    check(size.has_value(), listing_.id.repo, ": ", file_.name, ": ", options_.host(),
          " does not say its size");
    if (file_.size && *size != *file_.size) changed(concat(*size, " bytes, not ", *file_.size));
    size_ = *size;
  }

  // What an earlier fetch left, as far as it can be the begin of the file.
  uint64_t begun(OpenFile& file, Digest& digest) {
    const uint64_t there = file.size();
    if (there > size_) file.cut(0);
    if (there > size_ || there == 0) return 0;
    std::vector<char> block(kBlock);
    for (uint64_t at = 0; at < there;) {
      check_goes_on(connection_.stop());
      const ssize_t got =
          ::pread(file.fd(), block.data(), std::min(kBlock, there - at), static_cast<off_t>(at));
      check(got > 0, folder_.string(), ": an incomplete file cannot be read: ", std::strerror(errno));
      digest.add(block.data(), static_cast<size_t>(got));
      at += static_cast<uint64_t>(got);
    }
    report_.got(file_.name, static_cast<int64_t>(there));
    return there;
  }

  void download(const fs::path& blob) {
    const fs::path incomplete = blob.string() + ".incomplete";
    bool resumed = false;
    for (int round = 0;; ++round) {
      Digest digest(etag_, size_);
      {
        OpenFile file(incomplete, O_RDWR | O_CREAT | O_APPEND);
        const uint64_t before = begun(file, digest);
        resumed = before > 0;
        check(free_bytes(folder_) >= size_ - before, folder_.string(), ": no room for ", file_.name, " (",
              size_text(size_ - before), ")");
        transfer(file, digest, before);
        ::fsync(file.fd());
      }
      if (digest.agrees()) break;
      std::error_code ignored;
      fs::remove(incomplete, ignored);
      check(resumed && round == 0, listing_.id.repo, ": ", file_.name, ": what came has another ",
            digest.kind(), " than ", etag_,
            ", which the hub says: it was changed on the way, and nothing of it is kept. Try "
            "again; if it stays so, a proxy or mirror gives wrong files.");
      report_.watch().note(
          concat(file_.name, ": what an earlier fetch left of it is not its begin; starting again"));
      report_.got(file_.name, -static_cast<int64_t>(size_));
    }
    std::error_code error;
    fs::rename(incomplete, blob, error);
    check(!error, blob.string(), ": cannot be written: ", error.message());
  }

  // Appends what is missing behind `have` bytes.
  void transfer(OpenFile& file, Digest& digest, uint64_t have) {
    Patience patience(options_, report_.watch(), connection_.stop());
    uint64_t renewed = have;
    while (have < size_) {
      std::string problem;
      bool begun_anew = false;
      WebRequest request{.url = url_, .first_byte = have};
      request.take = [&](const WebReply& reply, const char* data, size_t bytes) {
        if (reply.status == 200 && have > 0 && !begun_anew && request.first_byte > 0) {
          // It gives all from the start: so be it.
          file.cut(0);
          digest.restart();
          report_.got(file_.name, -static_cast<int64_t>(have));
          have = renewed = 0;
        }
        if (reply.status == 206 && !begun_anew) {
          const std::string expected = concat("bytes ", have, "-", size_ - 1, "/", size_);
          if (reply.header("content-range") != expected)
            problem = concat("the server gives the range '", shown(reply.header("content-range")), "', not '",
                             expected, "'");
        }
        begun_anew = true;
        if (bytes > size_ - have) problem = concat("more comes than its ", size_, " bytes");
        if (problem.empty() && !file.append(data, bytes))
          problem = concat("cannot be written to ", folder_.string(), ": ", std::strerror(errno));
        if (!problem.empty()) return false;
        digest.add(data, bytes);
        have += bytes;
        report_.got(file_.name, static_cast<int64_t>(bytes));
        return true;
      };
      WebReply reply = connection_.once(request, false);
      check_goes_on(connection_.stop());
      check(problem.empty(), listing_.id.repo, ": ", file_.name, ": ", problem);
      if (have == size_) return;
      const bool came = reply.status == 200 || reply.status == 206;
      if (came && reply.problem.empty()) reply.problem = concat("only ", have, " of ", size_, " bytes came");
      // Addresses elsewhere are signed for a while: the next try asks for a new one.
      if (reply.status == 403 && reply.header("x-error-code").empty() && have > 0) reply.status = 503;
      if (have - renewed >= kRenewing) {
        patience.renew();
        renewed = have;
      }
      if (!patience.again(reply, file_.name)) refuse(options_, listing_.id, file_.name, reply);
    }
  }

  void link(const fs::path& blob) const {
    const fs::path snapshot = folder_ / "snapshots" / listing_.commit, name = snapshot / file_.name;
    make_folder(name.parent_path());
    std::error_code error;
    const fs::path target = (folder_ / "blobs" / blob.filename()).lexically_relative(name.parent_path());
    if (fs::read_symlink(name, error) == target) return;
    // Under another name first, so that the name is never without a file.
    const fs::path fresh = name.parent_path() / concat(".", name.filename().string(), ".", ::getpid());
    fs::remove(fresh, error);
    fs::create_symlink(target, fresh, error);
    if (!error) fs::rename(fresh, name, error);
    check(!error, name.string(), ": cannot be made a link: ", error.message());
  }

  HubConnection& connection_;
  const HubOptions& options_;
  const HubListing& listing_;
  const HubFile& file_;
  FetchReport& report_;
  const std::string url_;
  const fs::path folder_;
  std::string etag_;
  uint64_t size_ = 0;
};

}  // namespace

void fetch_file(HubConnection& connection, const HubListing& listing, const HubFile& file,
                FetchReport& report) {
  FileFetch(connection, listing, file, report).run();
}

void make_folder(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  check(!error, folder.string(), ": cannot be made: ", error.message());
}

uint64_t free_bytes(const fs::path& folder) {
  std::error_code error;
  const fs::space_info space = fs::space(folder, error);
  return error ? UINT64_MAX : space.available;
}

}  // namespace glimpse
