#pragma once

#include <array>
#include <string_view>

namespace glimpse::serve {

extern const std::string_view kPage;     ///< page.html
extern const std::string_view kOpenApi;  ///< openapi.json: what is asked and answered here, as OpenAPI 3.1

/// A picture (JPEG) of the built-in model's test set, and a question about it.
struct Example {
  std::string_view picture;
  const char* question;
};
extern const std::array<Example, 3> kExamples;

}  // namespace glimpse::serve
