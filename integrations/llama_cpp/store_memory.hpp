// SPDX-License-Identifier: Apache-2.0
//
// Memory of a cache's stores. They are reserved for more tokens than most contexts have, so pages are
// small ones and come with the tokens; what is resident can be asked for.
#pragma once

#include <map>

#include "clusterkv/memory.hpp"

namespace clusterkv::llama_cpp {

class StoreMemory final : public MemoryResource {
 public:
  void* allocate(std::size_t bytes, std::size_t alignment, Device device) override;
  void deallocate(void* data, std::size_t bytes, std::size_t alignment,
                  Device device) noexcept override;

  [[nodiscard]] std::size_t resident_bytes() const;

 private:
  std::map<void*, std::size_t> blocks_;
};

}  // namespace clusterkv::llama_cpp
