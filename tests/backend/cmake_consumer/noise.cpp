// Noise from the headers alone: nothing to link, and the same code under CUDA.
#include <cstdio>
#include <nfd_fast/normal.hpp>
#include <nfd_fast/philox.hpp>

int main() {
    const nfd_fast::NoiseAddress address =
        nfd_fast::noise_address(7, nfd_fast::Stream::forward_noise, 3);
    for (std::uint64_t block = 0; block < 5; ++block) {  // of four neurons, in column 9
        nfd_fast::PhiloxCounter<std::uint64_t> counters[1] = {{block, address.c1, 9, 0}};
        nfd_fast::philox4x32(counters, address.key0, address.key1);
        const auto [c0, c1, c2, c3] = counters[0];
        const std::uint32_t words[4] = {std::uint32_t(c0), std::uint32_t(c1), std::uint32_t(c2),
                                        std::uint32_t(c3)};
        for (int pair = 0; pair < 4; pair += 2) {
            const auto z = nfd_fast::box_muller<double>(words[pair], words[pair + 1]);
            std::printf("%u %a\n%u %a\n", words[pair], z.first, words[pair + 1], z.second);
        }
    }
}
