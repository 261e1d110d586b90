#include "glimpse/io/digest.h"

#include <openssl/evp.h>

#include "glimpse/base/check.h"

namespace glimpse {

namespace {

EVP_MD_CTX* of(void* context) {
  return static_cast<EVP_MD_CTX*>(context);
}

}  // namespace

void Digest::Free::operator()(void* context) const {
  EVP_MD_CTX_free(of(context));
}

Digest::Digest(const std::string& etag, uint64_t size) : etag_(etag), size_(size) {
  restart();
}

void Digest::restart() {
  const bool hex = etag_.find_first_not_of("0123456789abcdef") == etag_.npos;
  if (!hex || (etag_.size() != 40 && etag_.size() != 64)) return;
  context_.reset(EVP_MD_CTX_new());
  const bool git = etag_.size() == 40;
  check(context_ && EVP_DigestInit_ex(of(context_.get()), git ? EVP_sha1() : EVP_sha256(), nullptr) == 1,
        "OpenSSL cannot compute ", kind());
  if (!git) return;
  const std::string header = concat("blob ", size_);
  add(header.c_str(), header.size() + 1);  // with the zero behind it
}

Digest::~Digest() = default;

void Digest::add(const void* data, size_t size) {
  if (context_) EVP_DigestUpdate(of(context_.get()), data, size);
}

bool Digest::agrees() {
  if (!context_) return true;
  unsigned char sum[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  EVP_DigestFinal_ex(of(context_.get()), sum, &size);
  std::string text;
  for (unsigned int i = 0; i < size; ++i)
    for (const int digit : {sum[i] >> 4, sum[i] & 15}) text += "0123456789abcdef"[digit];
  return text == etag_;
}

const char* Digest::kind() const {
  return !context_ ? "" : etag_.size() == 40 ? "git's SHA-1" : "SHA-256";
}

}  // namespace glimpse
