// SPDX-License-Identifier: Apache-2.0
//
// Any bytes as a safetensors file: a FormatError, or tensors that lie inside the file.
#include <cstddef>
#include <vector>

#include "clusterkv/error.hpp"
#include "tests/fuzz/require.hpp"
#include "tools/clusterkv/safetensors.hpp"
#include "tools/clusterkv/trace.hpp"

namespace {

using namespace clusterkv;
using fuzz::require;

void check_inside(const TensorView& tensor, const std::vector<std::byte>& bytes) {
  std::uint64_t size = size_of(tensor.dtype);
  for (int axis = 0; axis < tensor.rank; ++axis) {
    const std::int64_t extent = tensor.shape[static_cast<std::size_t>(axis)];
    require(extent >= 0, "a negative extent");
    size *= static_cast<std::uint64_t>(extent);
  }
  const auto* first = static_cast<const std::byte*>(tensor.data);
  require(first >= bytes.data() && first <= bytes.data() + bytes.size(), "begins outside");
  require(size <= static_cast<std::uint64_t>(bytes.data() + bytes.size() - first), "ends outside");
}

}  // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto* first = reinterpret_cast<const std::byte*>(data);
  try {
    tool::SafeTensors file = tool::parse_safetensors({first, first + size});
    for (const auto& [name, tensor] : file.tensors) check_inside(tensor, file.bytes);
    const tool::Trace trace = tool::make_trace(std::move(file));
    require(trace.num_tokens > 0 && !trace.layers.empty(), "a trace of nothing");
  } catch (const FormatError& error) {
    require(error.what()[0] != '\0', "an error without a message");
  }
  return 0;
}
