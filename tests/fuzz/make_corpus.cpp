// SPDX-License-Identifier: Apache-2.0
//
// Writes the seeds of all corpora, after a change of what they are for. Usage: make_corpus FOLDER
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <new>
#include <string>
#include <vector>

#include "clusterkv/clusterkv.hpp"
#include "tests/fuzz/load_config.hpp"

namespace {

using namespace clusterkv;
namespace fs = std::filesystem;
using Chars = std::vector<char>;

void write(const fs::path& path, const Chars& bytes) {
  fs::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<long>(bytes.size()));
  std::cout << path << ": " << bytes.size() << " bytes\n";
}

/// A saved sequence, after the byte that says what it is loaded into.
template <class Cache>
Chars saved(char kind, int dense_layers, int tokens) {
  const CacheConfig config = fuzz::load_config(dense_layers);
  Cache cache(config);
  const SequenceId id = cache.add_sequence();
  const PlanLimits limits{1, 64, 0};
  const MemoryNeeds needs = Cache::memory_needs(config, Backend::kCpu, limits);
  auto* memory =
      static_cast<std::byte*>(operator new (needs.workspace_bytes, std::align_val_t{64}));
  {
    DecodePlan plan;
    if (tokens > 0) {
      const StepRow row{id, tokens, 0, Phase::kPrefillLast};
      plan = cache.plan({&row, 1}, limits, {memory, needs.workspace_bytes});
      std::vector<float> rows;
      for (int i = 0; i < tokens * 64; ++i) rows.push_back(std::sin(static_cast<float>(i) * 0.7F));
      const TensorView view = contiguous_view(rows.data(), DType::kF32, {tokens, 1, 64});
      cache.append(0, plan, view, view);
    }
    Chars bytes = {kind};
    cache.save(id, [&](std::span<const std::byte> part) {
      const auto* first = reinterpret_cast<const char*>(part.data());
      bytes.insert(bytes.end(), first, first + part.size());
    });
    operator delete (memory, std::align_val_t{64});
    return bytes;
  }
}

Chars safetensors(const std::string& header, std::size_t data_bytes) {
  const std::uint64_t size = header.size();
  Chars bytes(sizeof size + header.size() + data_bytes);
  std::memcpy(bytes.data(), &size, sizeof size);
  std::memcpy(bytes.data() + sizeof size, header.data(), header.size());
  return bytes;
}

/// Bytes of a generator: calls of the C API in any order.
Chars noise(std::uint32_t seed, std::size_t size) {
  Chars bytes(size);
  for (char& byte : bytes) {
    seed = seed * 1664525U + 1013904223U;
    byte = static_cast<char>(seed >> 24);
  }
  return bytes;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const fs::path root = argv[1];
  write(root / "load/sparse_empty", saved<ClusterKVCache>(0, 0, 0));
  write(root / "load/sparse_segment", saved<ClusterKVCache>(0, 0, 15));
  write(root / "load/dense_segment", saved<ClusterKVCache>(1, 1, 15));
  write(root / "load/dense_pending", saved<ClusterKVCache>(1, 1, 3));
  write(root / "load/selector_segment", saved<ClusterSelector>(2, 0, 15));
  write(root / "safetensors/two_tensors",
        safetensors(R"({"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
                    R"("b":{"dtype":"F16","shape":[4],"data_offsets":[24,32]},)"
                    R"("__metadata__":{"key":"value"}})",
                    32));
  write(root / "safetensors/trace",
        safetensors(R"({"layers.3.key":{"dtype":"F32","shape":[10,2,4],"data_offsets":[0,320]},)"
                    R"("layers.3.value":{"dtype":"F32","shape":[10,2,4],"data_offsets":[320,640]},)"
                    R"("layers.3.query":{"dtype":"F32","shape":[4,6,4],"data_offsets":[640,1024]},)"
                    R"("__metadata__":{"softmax_scale":"0.5","query_start":"6","query_heads":"6",)"
                    R"("kv_heads":"2","head_dim":"4"}})",
                    1024));
  for (std::uint32_t seed = 1; seed <= 4; ++seed) {
    write(root / ("c_api/noise_" + std::to_string(seed)), noise(seed, 400));
  }
  return 0;
}
