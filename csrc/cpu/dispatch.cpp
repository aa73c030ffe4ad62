// Chooses the instruction set once, at the first use.

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/kernels.hpp"

// From the most portable to the widest: the tables that CMakeLists.txt compiles.
#if NFD_FAST_X86_TARGETS
#define NFD_FAST_COMPILED_TARGETS(X) X(baseline) X(avx2) X(avx512)
#else
#define NFD_FAST_COMPILED_TARGETS(X) X(baseline)
#endif

namespace nfd_fast {

#define NFD_FAST_DECLARE_TABLE(target)     \
    namespace target {                     \
    extern const KernelTable kernel_table; \
    }
NFD_FAST_COMPILED_TARGETS(NFD_FAST_DECLARE_TABLE)
#undef NFD_FAST_DECLARE_TABLE

namespace {

bool supported(const std::string& name) {
#if defined(__x86_64__) && defined(__GNUC__)
    if (name == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (name == "avx512") {
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("fma");
    }
#endif
    return name == "baseline";
}

const std::vector<const KernelTable*>& compiled_tables() {
    static const std::vector<const KernelTable*> tables{
#define NFD_FAST_LIST_TABLE(target) &target::kernel_table,
        NFD_FAST_COMPILED_TARGETS(NFD_FAST_LIST_TABLE)
#undef NFD_FAST_LIST_TABLE
    };
    return tables;
}

std::string listed(const std::vector<const char*>& names) {
    std::string text;
    for (const char* name : names) text += (text.empty() ? "'" : ", '") + std::string(name) + "'";
    return text;
}

const KernelTable& choose() {
    const char* wanted = std::getenv("NFD_FAST_ISA");
    if (wanted && *wanted) {
        for (const KernelTable* table : compiled_tables()) {
            if (table->name == std::string(wanted) && supported(table->name)) return *table;
        }
        throw std::runtime_error("the environment variable NFD_FAST_ISA must be one of " +
                                 listed(supported_instruction_sets()) +
                                 " on this processor, got '" + wanted + "'; unset it to choose");
    }
    const KernelTable* best = compiled_tables().front();
    for (const KernelTable* table : compiled_tables()) {
        if (supported(table->name)) best = table;
    }
    return *best;
}

}  // namespace

const KernelTable& kernels() {
    static const KernelTable& table = choose();
    return table;
}

std::vector<const char*> compiled_instruction_sets() {
    std::vector<const char*> names;
    for (const KernelTable* table : compiled_tables()) names.push_back(table->name);
    return names;
}

std::vector<const char*> supported_instruction_sets() {
    std::vector<const char*> names;
    for (const KernelTable* table : compiled_tables()) {
        if (supported(table->name)) names.push_back(table->name);
    }
    return names;
}

}  // namespace nfd_fast
