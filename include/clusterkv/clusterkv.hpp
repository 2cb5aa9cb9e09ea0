// SPDX-License-Identifier: Apache-2.0
//
// Everything public. Start reading at kv_cache.hpp.
#pragma once

#include "clusterkv/attention.hpp"
#include "clusterkv/config.hpp"
#include "clusterkv/error.hpp"
#include "clusterkv/executor.hpp"
#include "clusterkv/kv_cache.hpp"
#include "clusterkv/memory.hpp"
#include "clusterkv/saved.hpp"
#include "clusterkv/selector.hpp"
#include "clusterkv/stats.hpp"
#include "clusterkv/step.hpp"
#include "clusterkv/types.hpp"
#include "clusterkv/version.hpp"
