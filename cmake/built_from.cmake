# Writes OUT, a C++ file that says what the program was built from: the last commit of the sources that it is made of, with
# a mark that names what has changed since; the version where there is no git. An unchanged file is left alone.
set(parts apps cmake CMakeLists.txt eval glimpse models)
function(git_says variable)
  execute_process(COMMAND ${ARGN} WORKING_DIRECTORY ${SOURCE} OUTPUT_VARIABLE said OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET
                  RESULT_VARIABLE ignored)
  set(${variable} "${said}" PARENT_SCOPE)
endfunction()

git_says(commit git log -1 --format=%h -- ${parts})
if(commit)
  git_says(changes git diff --no-ext-diff HEAD -- ${parts})
  if(changes)
    string(SHA1 mark "${changes}")
    string(SUBSTRING ${mark} 0 7 mark)
    set(commit "${commit}+${mark}")
  endif()
else()
  set(commit ${VERSION})
endif()
file(CONFIGURE OUTPUT ${OUT} @ONLY CONTENT [[
#include "built_from.h"

namespace glimpse::app {
const char* const kBuiltFrom = "@commit@";
}
]])
