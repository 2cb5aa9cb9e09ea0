// SPDX-License-Identifier: Apache-2.0
//
// How calls of the C API begin and end: pointers and sizes are checked, exceptions become codes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include "clusterkv/c_api.h"
#include "clusterkv/error.hpp"
#include "src/runtime/check.hpp"

namespace clusterkv::c {

using runtime::fail;

/// A NULL where none is allowed, or a struct of another version: what only callers in C can get wrong.
class ArgumentError : public Error {
 public:
  using Error::Error;
};

/// A function of the caller's returned a failure.
class CallbackError : public Error {
 public:
  using Error::Error;
};

/// Whether `error` is NULL or can be filled; then it says CKV_OK.
bool begin(ckv_error* error) noexcept;

/// The code of the exception in flight, which is written to `error` with what it says.
ckv_status report(ckv_error* error) noexcept;

/// body(), whatever it throws.
template <class Body>
ckv_status guarded(ckv_error* error, const Body& body) noexcept {
  if (!begin(error)) return CKV_ARGUMENT_ERROR;
  try {
    body();
    return CKV_OK;
  } catch (...) {
    return report(error);
  }
}

template <class T>
T& not_null(T* pointer, const char* name) {
  if (pointer == nullptr) fail<ArgumentError>("{}: NULL, expected a pointer", name);
  return *pointer;
}

/// A struct of the caller's to be filled, of which only the size is there. Once a struct has grown, its
/// older sizes are known too.
template <class T>
T& sized(T* pointer, const char* name) {
  T& it = not_null(pointer, name);
  if (it.struct_size != sizeof(T)) {
    fail<ArgumentError>("{}.struct_size: {}, expected {}", name, it.struct_size, sizeof(T));
  }
  return it;
}

/// A struct of the caller's to be read.
template <class T>
T& known(T* pointer, const char* name) {
  T& it = sized(pointer, name);
  if constexpr (requires { it.reserved; }) {
    if (it.reserved != 0) fail<ArgumentError>("{}.reserved: {}, expected 0", name, it.reserved);
  }
  return it;
}

/// An enum of the C API, none of whose values is 255. What does not fit becomes that, so that it is
/// refused where values are checked.
template <class E>
E to_enum(std::int32_t value) {
  constexpr std::int32_t kNone = std::numeric_limits<std::uint8_t>::max();
  return static_cast<E>(value >= 0 && value < kNone ? value : kNone);
}

}  // namespace clusterkv::c
