// SPDX-License-Identifier: Apache-2.0
//
// Everything this library throws. A message names the argument, the value it had and what was
// expected. After any of these the object is as it was before the call.
#pragma once

#include <stdexcept>

namespace clusterkv {
inline namespace v0 {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A field of a configuration is out of its range, or two of them contradict each other.
class ConfigError : public Error {
 public:
  using Error::Error;
};

/// A tensor has the wrong rank, extent, stride or device, or a batch has the wrong rows.
class ShapeError : public Error {
 public:
  using Error::Error;
};

class DTypeError : public Error {
 public:
  using Error::Error;
};

/// A value inside a tensor is not allowed: a cluster id that does not exist, a non-finite key.
class ValueError : public Error {
 public:
  using Error::Error;
};

/// A limit given at creation (max_tokens, max_sequences, a plan's limits, a workspace) is reached.
class CapacityError : public Error {
 public:
  using Error::Error;
};

class UnknownSequence : public Error {
 public:
  using Error::Error;
};

/// Calls came out of order: attend before append, a layer left out of a step, a stale plan.
class StepError : public Error {
 public:
  using Error::Error;
};

class BackendUnavailable : public Error {
 public:
  using Error::Error;
};

/// CUDA reported an error; the message has its name. Errors of kernels surface at a later call.
class CudaError : public Error {
 public:
  using Error::Error;
};

/// A MemoryResource, or the disk of store.cold_path, could not give the memory asked for.
class OutOfMemory : public Error {
 public:
  using Error::Error;
};

/// A file or byte stream is damaged, cut off, or not of the format it claims.
class FormatError : public Error {
 public:
  using Error::Error;
};

/// The file of store.cold_path cannot be made, or its disk does not deliver what was stored there. The
/// sequences are as before the call: it may be made again.
class FileError : public Error {
 public:
  using Error::Error;
};

}  // namespace v0
}  // namespace clusterkv
