// SPDX-License-Identifier: Apache-2.0
//
// Reads safetensors files, which may be damaged or made to harm.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "clusterkv/types.hpp"

namespace clusterkv::tool {

struct SafeTensors {
  std::map<std::string, TensorView> tensors;  ///< views of `bytes`
  std::map<std::string, std::string> metadata;
  std::vector<std::byte> bytes;  ///< the whole file
};

/// Checks every size against the file before it is believed.
/// \throws FormatError  naming the tensor or field, its value and what was expected
SafeTensors parse_safetensors(std::vector<std::byte> bytes);

/// \throws FormatError  also if the file can't be read
SafeTensors read_safetensors(const std::string& path);

}  // namespace clusterkv::tool
