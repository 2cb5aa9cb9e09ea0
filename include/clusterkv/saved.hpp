// SPDX-License-Identifier: Apache-2.0
//
// Where a saved sequence goes to and comes from: the caller's file, socket or memory.
#pragma once

#include <cstddef>
#include <functional>
#include <span>

namespace clusterkv {
inline namespace v0 {

/// Takes the next bytes of a saved sequence, all of them. What it throws ends save().
using WriteFn = std::function<void(std::span<const std::byte> bytes)>;

/// Fills the front of `bytes` with the next ones and says how many; 0 only at the end. What it
/// throws ends load().
using ReadFn = std::function<std::size_t(std::span<std::byte> bytes)>;

}  // namespace v0
}  // namespace clusterkv
