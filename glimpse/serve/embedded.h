#pragma once

#include <string_view>

namespace glimpse::serve {

extern const std::string_view kPage;     ///< page.html
extern const std::string_view kOpenApi;  ///< openapi.json: what is asked and answered here, as OpenAPI 3.1

}  // namespace glimpse::serve
