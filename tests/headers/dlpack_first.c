// SPDX-License-Identifier: Apache-2.0
//
// After dlpack.h a DLTensor is taken as it is, and codes are DLPack's.
#include "dlpack_names.h"
// Before what uses its names.
#include "clusterkv/c_api.h"

ckv_status append_dltensor(ckv_cache* cache, const ckv_layer_call* call, const DLTensor* key);
ckv_status append_dltensor(ckv_cache* cache, const ckv_layer_call* call, const DLTensor* key) {
  return ckv_cache_append(cache, call, key, key, 0);
}

#ifdef __cplusplus
#define CKV_ASSERT static_assert
#else
#define CKV_ASSERT _Static_assert
#endif
CKV_ASSERT((int)CKV_DEVICE_CPU == (int)kDLCPU, "device");
CKV_ASSERT((int)CKV_DEVICE_CUDA == (int)kDLCUDA, "device");
CKV_ASSERT((int)CKV_DEVICE_CUDA_HOST == (int)kDLCUDAHost, "device");
CKV_ASSERT((int)CKV_DEVICE_CUDA_MANAGED == (int)kDLCUDAManaged, "device");
CKV_ASSERT((int)CKV_TYPE_INT == (int)kDLInt, "type");
CKV_ASSERT((int)CKV_TYPE_FLOAT == (int)kDLFloat, "type");
CKV_ASSERT((int)CKV_TYPE_BFLOAT == (int)kDLBfloat, "type");
