// SPDX-License-Identifier: Apache-2.0
//
// The same in C++, of any standard from C++11 on.
#include "dlpack_first.c"
