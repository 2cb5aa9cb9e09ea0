// SPDX-License-Identifier: Apache-2.0
//
// What the machine at hand can do, measured in this process when first asked for: a bench of the CPU
// backend prints its share of it. Each figure is the median of kRepeats.
#pragma once

#include <cstddef>
#include <functional>

namespace clusterkv::bench {

inline constexpr int kRepeats = 9;

/// Seconds of run(), the median of kRepeats.
double median_seconds(const std::function<void()>& run);

/// Bytes a second of reads in order, from memory that no cache holds.
double read_bandwidth(int threads);

/// The same for runs of `run_bytes` (a multiple of 64) at random places, the next one prefetched.
double gather_bandwidth(int threads, std::size_t run_bytes);

/// Floating point operations a second of multiply-adds in registers, each being two of them.
double fma_rate(int threads);

/// The same of bf16 products by matrix units.
/// \pre clusterkv::is_offered(Isa::kAmx)
double tile_rate(int threads);

}  // namespace clusterkv::bench
