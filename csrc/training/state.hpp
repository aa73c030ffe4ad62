// What a run must remember to be continued, as named runs of numbers.
#pragma once

#include <cstdint>

namespace nfd_fast {

// Either end of a transfer: a writer copies the numbers away, a reader overwrites them, a counter
// only counts. Calls with the same name follow each other in one array.
class StateStream {
  public:
    virtual ~StateStream() = default;
    virtual void numbers(const char* name, float* data, std::int64_t count) = 0;
    virtual void numbers(const char* name, double* data, std::int64_t count) = 0;
    virtual void numbers(const char* name, std::int64_t* data, std::int64_t count) = 0;
    // After the last call: a reader throws std::invalid_argument if something was left over.
    virtual void finish() {}
};

// The memory of a finished run, kept to be saved.
class State {
  public:
    virtual ~State() = default;
    virtual void transfer(StateStream& stream) = 0;
};

}  // namespace nfd_fast
