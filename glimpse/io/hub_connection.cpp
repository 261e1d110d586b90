#include "glimpse/io/hub_connection.h"

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <mutex>

#include "glimpse/base/check.h"

namespace glimpse {

namespace {

constexpr int kMostTries = 5, kMostConnects = 3, kMostRedirects = 10;
constexpr double kLongestPause_s = 300;

bool is_redirect(long status) {
  return status == 301 || status == 302 || status == 303 || status == 307 || status == 308;
}

// A location that names a host, as "scheme:..." or "//host/...".
bool names_host(const std::string& location) {
  if (location.starts_with("//")) return true;
  const size_t end = location.find_first_of(":/?#");
  return end != location.npos && location[end] == ':';
}

bool may_pass(const WebReply& reply) {
  if (!reply.problem.empty() || reply.status == 0) return !reply.lasting;
  return reply.status == 408 || reply.status == 429 || reply.status == 500 || reply.status == 502 ||
         reply.status == 503 || reply.status == 504;
}

std::string reason(const WebReply& reply) {
  if (!reply.problem.empty()) return shown(reply.problem);
  return concat("status ", reply.status);
}

}  // namespace

std::string shown(const std::string& text) {
  constexpr size_t longest = 200;
  std::string out = text.substr(0, longest);
  for (char& c : out)
    if (std::iscntrl(static_cast<unsigned char>(c)) || static_cast<unsigned char>(c) >= 0x80) c = '?';
  return text.size() > longest ? out + "..." : out;
}

void check_goes_on(const std::stop_token& stop) {
  check_as(Error::Kind::cancelled, !stop.stop_requested(),
           "stopped; what was fetched is kept, and the same command goes on from there");
}

bool Patience::again(const WebReply& reply, const std::string& what) {
  check_goes_on(stop_);
  if (!may_pass(reply) || ++tries_ >= (reply.no_connection ? kMostConnects : kMostTries)) return false;
  if (reply.retry_after_s > kLongestPause_s) return false;
  const double pause_s = reply.retry_after_s > 0 ? reply.retry_after_s : std::ldexp(1, tries_ - 1);
  watch_.note(concat(what, ": ", reason(reply), "; trying again in ", pause_s, " s"));
  std::mutex mutex;
  std::condition_variable_any wake;
  std::unique_lock lock(mutex);
  wake.wait_for(lock, stop_, std::chrono::duration<double>(pause_s), [] { return false; });
  check_goes_on(stop_);
  return true;
}

WebReply HubConnection::once(WebRequest request, bool at_home) {
  request.stall_s = options_.stall_s;
  const std::string home = web_origin(options_.endpoint);
  const std::vector<std::string> plain = request.headers;
  WebReply reply;
  const auto lasting = [&](const std::string& problem) {
    reply.problem = problem;
    reply.lasting = true;
    return reply;
  };
  for (int hop = 0; hop <= kMostRedirects; ++hop) {
    request.headers = plain;
    if (!options_.token.empty() && web_origin(request.url) == home)
      request.headers.push_back("Authorization: Bearer " + options_.token);
    reply = client_.get(request, stop_);
    if (!reply.problem.empty() || !is_redirect(reply.status)) return reply;
    if (at_home && names_host(reply.header("location"))) return reply;
    if (web_origin(reply.redirect).empty())
      return lasting(
          concat("redirected to no address with http or https: ", shown(reply.header("location"))));
    if (home.starts_with("https:") && !web_origin(reply.redirect).starts_with("https:"))
      return lasting("redirected from https to http, which anybody on the way could change");
    request.url = reply.redirect;
  }
  return lasting("too many redirects");
}

WebReply HubConnection::get(const WebRequest& request, bool at_home, const std::string& what) {
  Patience patience(options_, watch_, stop_);
  while (true) {
    WebReply reply = once(request, at_home);
    if (!patience.again(reply, what)) return reply;
  }
}

void refuse(const HubOptions& options, const HubId& id, const std::string& file, const WebReply& reply) {
  const std::string what =
                        file.empty() ? concat("model '", id.text(), "'") : concat(id.repo, ": ", shown(file)),
                    host = options.host(), page = concat(options.endpoint, "/", id.repo);
  const bool known = !options.token.empty();
  const std::string code = reply.header("x-error-code"), said = reply.header("x-error-message"),
                    with_reason = said.empty() ? "" : concat(" (", shown(said), ")");
  if (!reply.problem.empty() || reply.status == 0)
    fail(what, ": ", host, ": ", reply.problem.empty() ? "no answer" : shown(reply.problem),
         reply.no_connection ? "\nCheck the connection; https_proxy names a proxy, HF_ENDPOINT another hub."
                             : "\nWhat was fetched so far is kept: the same command goes on from there.");
  if (code == "GatedRepo" && known)
    fail(what, ": access is granted by its authors", with_reason, "\nAsk for it at ", page,
         " with the account of the token of ", options.token_from, ", then try again.");
  if (code == "GatedRepo")
    fail(what, ": access is granted by its authors", with_reason, "\nAsk for it at ", page,
         ", then set HF_TOKEN to a token of that account (", options.endpoint, "/settings/tokens).");
  if (code == "RevisionNotFound")
    fail(what, ": there is no revision '", id.revision, "'; ", page,
         "/tree/main lists its branches and tags");
  if (code == "EntryNotFound" || (reply.status == 404 && !file.empty()))
    fail(what, ": ", host, " lists this file but does not have it");
  if (reply.status == 401 && known && code != "RepoNotFound")
    fail(what, ": ", host, " does not know the token of ", options.token_from, with_reason,
         "\nMake a new one at ", options.endpoint, "/settings/tokens, or unset it for what is public.");
  if (reply.status == 401 || reply.status == 404 || code == "RepoNotFound")
    fail(what, ": there is no such repository at ", host, ", or it is private", "\nCheck its name (org/name)",
         known ? concat("; the account of the token of ", options.token_from, " must be allowed to read it.")
               : "; for a private one set HF_TOKEN to a token of an account that may read it.");
  if (reply.status == 403)
    fail(what, ": ", host, " does not allow it", with_reason,
         known
             ? concat("\nThe token of ", options.token_from, " must have the right to read this repository.")
             : "\nSet HF_TOKEN to a token of an account that may read it.");
  if (reply.status == 429)
    fail(what, ": ", host, " has had too many requests from here",
         reply.retry_after_s > 0 ? concat("; it asks to wait for ", reply.retry_after_s, " s") : "",
         "\nTry again later", known ? "." : ", or set HF_TOKEN: who is known may ask more often.");
  fail(what, ": ", host, " answered with status ", reply.status, with_reason,
       reply.status >= 500 ? "\nIt has a problem of its own; the same command goes on from here later." : "");
}

}  // namespace glimpse
