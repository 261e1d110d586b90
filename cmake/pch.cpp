// Builds the precompiled header that the library, programs and tests share.
