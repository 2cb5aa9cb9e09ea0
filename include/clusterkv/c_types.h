// SPDX-License-Identifier: Apache-2.0
//
// Plain types of the C API: errors, tensors, configuration, callbacks. What a field means is said
// where it comes from: config.hpp, executor.hpp, memory.hpp.
//
// Every struct begins with `struct_size`, which the caller sets to sizeof of the struct, also where the
// library fills it. A later version appends fields; a size that the library does not know is refused
// with CKV_ARGUMENT_ERROR. Enums are int32_t: a value that is none of them is refused as any other.
#pragma once

// NOLINTBEGIN(readability-identifier-naming,modernize-*): names, typedefs and headers of C
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// ------------------------------------------------------------------------------------- errors

/// What a call returns. The names are those of the errors in error.hpp, and three that only C has.
typedef int32_t ckv_status;
enum {
  CKV_OK = 0,
  CKV_CONFIG_ERROR = 1,
  CKV_SHAPE_ERROR = 2,
  CKV_DTYPE_ERROR = 3,
  CKV_VALUE_ERROR = 4,
  CKV_CAPACITY_ERROR = 5,
  CKV_UNKNOWN_SEQUENCE = 6,
  CKV_STEP_ERROR = 7,
  CKV_BACKEND_UNAVAILABLE = 8,
  CKV_CUDA_ERROR = 9,
  CKV_OUT_OF_MEMORY = 10,  ///< of a memory resource, or of the process
  CKV_FORMAT_ERROR = 11,
  CKV_FILE_ERROR = 12,
  CKV_ARGUMENT_ERROR = 13,  ///< a pointer is NULL, or a struct_size is unknown
  CKV_CALLBACK_ERROR = 14,  ///< a function of the caller's said that it failed
  CKV_OTHER_ERROR = 15      ///< anything else, such as what a callback in C++ threw
};

/// Filled by the call that it was given to; nothing is kept elsewhere. Texts end with a zero, and are
/// cut off where there is no room.
typedef struct ckv_error {
  size_t struct_size;
  ckv_status code;    ///< what the call returned; CKV_OK after a call that went well
  char argument[60];  ///< its argument or field, as "config.max_tokens"; may be empty
  char message[384];  ///< argument, value and what was expected
} ckv_error;

// ------------------------------------------------------------------------------------ tensors

#ifdef DLPACK_DLPACK_H_
typedef DLTensor ckv_tensor;
#else
typedef struct ckv_device {
  int32_t device_type;
  int32_t device_id;
} ckv_device;

typedef struct ckv_data_type {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
} ckv_data_type;

/// A DLTensor of DLPack 1.1, the same bytes under a name of our own; the very type if dlpack.h was
/// included before. Borrowed for the call. `strides` counts elements, NULL: dense and row-major.
/// `data` + `byte_offset` is aligned to an element. ndim is 1 .. 5.
typedef struct ckv_tensor {
  void* data;
  ckv_device device;
  int32_t ndim;
  ckv_data_type dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
} ckv_tensor;
#endif

/// DLDeviceType, as far as it is taken. A CUDA cache takes all but CKV_DEVICE_CPU, the CPU's all but
/// CKV_DEVICE_CUDA.
enum {
  CKV_DEVICE_CPU = 1,
  CKV_DEVICE_CUDA = 2,
  CKV_DEVICE_CUDA_HOST = 3,
  CKV_DEVICE_CUDA_MANAGED = 13
};

/// DLDataTypeCode, as far as it is taken: i32, f32 and f16, bf16; one lane.
enum { CKV_TYPE_INT = 0, CKV_TYPE_FLOAT = 2, CKV_TYPE_BFLOAT = 4 };

// ------------------------------------------------------------------------------ configuration

enum { CKV_F32 = 0, CKV_F16 = 1, CKV_BF16 = 2 };     // DType
enum { CKV_BACKEND_CPU = 0, CKV_BACKEND_CUDA = 1 };  // Backend
enum { CKV_METRIC_COSINE = 0, CKV_METRIC_L2 = 1, CKV_METRIC_INNER_PRODUCT = 2 };
enum { CKV_INDEX_INT8 = 0, CKV_INDEX_BF16 = 1, CKV_INDEX_F32 = 2 };  // IndexDType
enum { CKV_GROUPING_SHARED = 0, CKV_GROUPING_PER_QUERY_HEAD = 1 };   // HeadGrouping
enum { CKV_TAIL_NONE = 0, CKV_TAIL_MEAN = 1, CKV_TAIL_SECOND_MOMENT = 2 };
enum {
  CKV_RESIDENCY_AUTO = 0,
  CKV_RESIDENCY_DEVICE = 1,
  CKV_RESIDENCY_HOST = 2,
  CKV_RESIDENCY_HYBRID = 3
};
enum { CKV_RETENTION_LRU = 0, CKV_RETENTION_RETAIN_STEPS = 1 };
enum { CKV_MISSES_COPY = 0, CKV_MISSES_ESTIMATE = 1 };

/// CacheConfig. Fill it with ckv_config_standard() or ckv_config_paper(), then set the model,
/// max_sequences and max_tokens.
typedef struct ckv_config {
  size_t struct_size;
  // model
  int32_t num_layers;
  int32_t num_q_heads;
  int32_t num_kv_heads;
  int32_t head_dim;
  int32_t value_dim;
  int32_t kv_dtype;  ///< CKV_BF16, CKV_F16 or CKV_F32
  float softmax_scale;
  float logit_softcap;
  const int32_t* layers;  ///< num_layers of them, or NULL
  // cluster
  int32_t tokens_per_cluster;
  int32_t segment_tokens;
  int32_t window_tokens;
  int32_t min_window_clusters;
  int32_t kmeans_iterations;
  int32_t sink_tokens;
  uint64_t seed;
  int32_t metric;
  int32_t index_dtype;
  // select
  int32_t budget_tokens;
  int32_t grouping;
  int32_t tail;
  float tail_share;
  int32_t dense_layers;
  float dense_threshold;
  // store
  size_t device_bytes;
  size_t host_bytes;
  const char* cold_path;  ///< NULL: none
  int64_t live_tokens;
  int32_t residency;
  int32_t retention;
  int32_t retain_steps;
  int32_t misses;
  int32_t transfer_tokens;

  int32_t check_finite;  ///< 0 or 1
  int64_t max_tokens;
  int32_t max_sequences;
  int32_t reserved;  ///< 0
} ckv_config;

// ---------------------------------------------------------------------- threads, memory, bytes

typedef struct ckv_executor ckv_executor;  ///< ckv_executor_create_…()
typedef struct ckv_cache ckv_cache;        ///< ClusterKVCache
typedef struct ckv_selector ckv_selector;  ///< ClusterSelector
typedef struct ckv_plan ckv_plan;          ///< DecodePlan

/// An Executor of the caller's. run() calls task(arg, i) once for each i in [0, num_tasks), returns when
/// all have returned, and says 0; or says another number, which ends the call with CKV_CALLBACK_ERROR.
typedef struct ckv_executor_callbacks {
  size_t struct_size;
  void* context;
  int32_t concurrency;  ///< tasks that may run at once; >= 1
  int32_t reserved;     ///< 0
  int (*run)(void* context, int num_tasks, void (*task)(void* arg, int index), void* arg);
} ckv_executor_callbacks;

/// A MemoryResource of the caller's. allocate() gives NULL where there is no memory, which ends the call
/// with CKV_OUT_OF_MEMORY. Devices are CKV_DEVICE_…
typedef struct ckv_memory_callbacks {
  size_t struct_size;
  void* context;
  void* (*allocate)(void* context, size_t bytes, size_t alignment, int32_t device_type,
                    int32_t device_id);
  void (*deallocate)(void* context, void* data, size_t bytes, size_t alignment, int32_t device_type,
                     int32_t device_id);
} ckv_memory_callbacks;

/// What a cache or selector runs on. `context` and `executor` must outlive it.
typedef struct ckv_resources {
  size_t struct_size;
  int32_t backend;
  int32_t reserved;                    ///< 0
  ckv_executor* executor;              ///< NULL: a pool of its own, as many threads as cores
  const ckv_memory_callbacks* memory;  ///< copied; NULL: the backend's own
} ckv_resources;

/// Where a call's work is queued. A NULL in its place: the object's backend and threads, and with CUDA
/// the default stream.
typedef struct ckv_stream {
  size_t struct_size;
  int32_t backend;
  int32_t reserved;        ///< 0
  void* handle;            ///< CUDA: a cudaStream_t; CPU: unused
  ckv_executor* executor;  ///< CPU: threads for this call; NULL: those of the object
} ckv_stream;

/// Takes the next bytes of a saved sequence, all of them, and says 0; another number ends the call with
/// CKV_CALLBACK_ERROR.
typedef struct ckv_writer {
  size_t struct_size;
  void* context;
  int (*write)(void* context, const void* bytes, size_t size);
} ckv_writer;

/// Fills the front of `bytes` with the next ones and says how many; 0 only at the end. A negative
/// number ends the call with CKV_CALLBACK_ERROR.
typedef struct ckv_reader {
  size_t struct_size;
  void* context;
  int64_t (*read)(void* context, void* bytes, size_t size);
} ckv_reader;

#ifdef __cplusplus
}
#endif
// NOLINTEND(readability-identifier-naming,modernize-*)
