// Marks a function that users of the library see; everything else stays hidden.
#pragma once

#if defined(_WIN32)
#define QD_EXPORT extern "C" __declspec(dllexport)
#else
#define QD_EXPORT extern "C" __attribute__((visibility("default")))
#endif
