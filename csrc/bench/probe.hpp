// What benchmarks/machine.py finds by name in the library of probes.
#pragma once

#if defined(_WIN32)
#define NFD_FAST_PROBE extern "C" __declspec(dllexport)
#else
#define NFD_FAST_PROBE extern "C" __attribute__((visibility("default")))
#endif
