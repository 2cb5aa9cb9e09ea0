// SPDX-License-Identifier: Apache-2.0
#include "src/c_support.hpp"

#include <algorithm>
#include <array>
#include <exception>
#include <new>
#include <string_view>

namespace clusterkv::c {
namespace {

template <class E>
bool is(const Error& error) {
  return dynamic_cast<const E*>(&error) != nullptr;
}

struct Code {
  ckv_status status;
  bool (*matches)(const Error& error);
};

constexpr std::array kCodes = {Code{CKV_CONFIG_ERROR, is<ConfigError>},
                               Code{CKV_SHAPE_ERROR, is<ShapeError>},
                               Code{CKV_DTYPE_ERROR, is<DTypeError>},
                               Code{CKV_VALUE_ERROR, is<ValueError>},
                               Code{CKV_CAPACITY_ERROR, is<CapacityError>},
                               Code{CKV_UNKNOWN_SEQUENCE, is<UnknownSequence>},
                               Code{CKV_STEP_ERROR, is<StepError>},
                               Code{CKV_BACKEND_UNAVAILABLE, is<BackendUnavailable>},
                               Code{CKV_CUDA_ERROR, is<CudaError>},
                               Code{CKV_OUT_OF_MEMORY, is<OutOfMemory>},
                               Code{CKV_FORMAT_ERROR, is<FormatError>},
                               Code{CKV_FILE_ERROR, is<FileError>},
                               Code{CKV_ARGUMENT_ERROR, is<ArgumentError>},
                               Code{CKV_CALLBACK_ERROR, is<CallbackError>}};

ckv_status status_of(const Error& error) noexcept {
  for (const Code& code : kCodes) {
    if (code.matches(error)) return code.status;
  }
  return CKV_OTHER_ERROR;
}

template <std::size_t N>
void copy_text(char (&to)[N], std::string_view text) noexcept {
  const std::size_t length = std::min(text.size(), N - 1);
  to[text.copy(to, length)] = '\0';
}

/// Messages of the library begin with the argument and a colon.
std::string_view argument_of(std::string_view message) noexcept {
  const std::size_t colon = message.find(": ");
  if (colon == std::string_view::npos || colon >= sizeof(ckv_error::argument)) return {};
  return message.substr(0, colon);
}

ckv_status fill(ckv_error* error, ckv_status status, const char* message,
                std::string_view argument = {}) noexcept {
  if (error == nullptr) return status;
  error->code = status;
  copy_text(error->message, message);
  copy_text(error->argument, argument);
  return status;
}

}  // namespace

bool begin(ckv_error* error) noexcept {
  if (error == nullptr) return true;
  if (error->struct_size != sizeof(ckv_error)) return false;
  fill(error, CKV_OK, "");
  return true;
}

ckv_status report(ckv_error* error) noexcept {
  try {
    throw;
  } catch (const Error& thrown) {
    return fill(error, status_of(thrown), thrown.what(), argument_of(thrown.what()));
  } catch (const std::bad_alloc&) {
    return fill(error, CKV_OUT_OF_MEMORY, "no memory");
  } catch (const std::exception& thrown) {
    return fill(error, CKV_OTHER_ERROR, thrown.what());
  } catch (...) {
    return fill(error, CKV_OTHER_ERROR, "an exception that is no std::exception");
  }
}

}  // namespace clusterkv::c

const char* ckv_status_name(ckv_status status) {
  static constexpr const char* kNames[] = {"CKV_OK",
                                           "CKV_CONFIG_ERROR",
                                           "CKV_SHAPE_ERROR",
                                           "CKV_DTYPE_ERROR",
                                           "CKV_VALUE_ERROR",
                                           "CKV_CAPACITY_ERROR",
                                           "CKV_UNKNOWN_SEQUENCE",
                                           "CKV_STEP_ERROR",
                                           "CKV_BACKEND_UNAVAILABLE",
                                           "CKV_CUDA_ERROR",
                                           "CKV_OUT_OF_MEMORY",
                                           "CKV_FORMAT_ERROR",
                                           "CKV_FILE_ERROR",
                                           "CKV_ARGUMENT_ERROR",
                                           "CKV_CALLBACK_ERROR",
                                           "CKV_OTHER_ERROR"};
  const bool is_known = status >= CKV_OK && status <= CKV_OTHER_ERROR;
  return is_known ? kNames[status] : "not a ckv_status";
}
