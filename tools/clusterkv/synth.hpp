// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "tools/clusterkv/progress.hpp"

namespace clusterkv::tool {

/// A made-up trace: topics in key space, runs of tokens on one topic, some channels with large
/// values. For speed and scale only.
struct SynthOptions {
  std::int64_t tokens = 32768;
  int layers = 1;
  int q_heads = 8;
  int kv_heads = 2;
  int head_dim = 64;
  int queries = 64;
  std::uint64_t seed = 1;
};

/// Writes the file layer by layer, in pieces of bounded size. The same bytes on every machine.
/// \throws ConfigError  if an option is out of range
/// \throws FormatError  if the file can't be written
void write_synth(
    const std::string& path, const SynthOptions& options, const Progress& progress = [](double) {});

}  // namespace clusterkv::tool
