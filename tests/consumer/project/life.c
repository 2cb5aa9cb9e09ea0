// SPDX-License-Identifier: Apache-2.0
//
// A whole life in C11: a prompt, decode steps, a fork, a draft taken back, a sequence saved and loaded,
// and mistakes that end with a code.
#include <clusterkv/c_api.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LAYERS = 2, Q_HEADS = 4, KV_HEADS = 2, HEAD_DIM = 64, PROMPT = 300, TOKENS = 1024 };

static ckv_error error = {.struct_size = sizeof(ckv_error)};

static void must(ckv_status status, int line) {
  if (status == CKV_OK) return;
  fprintf(stderr, "line %d: %s: %s\n", line, ckv_status_name(status), error.message);
  exit(1);
}
#define MUST(call) must((call), __LINE__)

static void check(int holds, int line) {
  if (holds) return;
  fprintf(stderr, "line %d: does not hold\n", line);
  exit(1);
}
#define CHECK(condition) check((condition), __LINE__)

/// Stands for the engine's QKV projection: the same numbers for the same place.
static void make_rows(float* to, int64_t first, int64_t rows, int heads, int layer) {
  for (int64_t i = 0; i < rows * heads * HEAD_DIM; ++i) {
    const double place = (double)(first * heads * HEAD_DIM + i);
    to[i] = (float)sin(place * 0.7 + layer) + 0.25F * (float)cos(place * 0.013);
  }
}

/// A DLTensor [rows, heads, HEAD_DIM] of floats; the shape is kept beside it.
typedef struct tensor {
  int64_t shape[3];
  ckv_tensor view;
} tensor;

static const ckv_tensor* view(tensor* t, float* data, int64_t rows, int64_t heads) {
  t->shape[0] = rows, t->shape[1] = heads, t->shape[2] = HEAD_DIM;
  memset(&t->view, 0, sizeof t->view);
  t->view.data = data;
  t->view.device.device_type = CKV_DEVICE_CPU;
  t->view.ndim = 3;
  t->view.dtype.code = CKV_TYPE_FLOAT;
  t->view.dtype.bits = 32;
  t->view.dtype.lanes = 1;
  t->view.shape = t->shape;
  return &t->view;
}

/// One step of a sequence through all layers; `out` is of the last one.
static void step(ckv_cache* cache, ckv_plan* plan, ckv_step_row row, float* out) {
  static float key[PROMPT * KV_HEADS * HEAD_DIM], value[PROMPT * KV_HEADS * HEAD_DIM];
  static float query[Q_HEADS * HEAD_DIM];
  int64_t length = 0;
  MUST(ckv_cache_update(cache, plan, &row, 1, NULL, &error));
  MUST(ckv_cache_length(cache, row.sequence, &length, &error));
  for (int layer = 0; layer < LAYERS; ++layer) {
    const int64_t first = length - row.num_new_tokens;
    make_rows(key, first, row.num_new_tokens, KV_HEADS, layer);
    make_rows(value, first, row.num_new_tokens, KV_HEADS, layer + 100);
    make_rows(query, length - 1, 1, Q_HEADS, layer + 200);
    tensor k, v, q, o;
    const ckv_layer_call call = {.struct_size = sizeof call, .plan = plan, .layer = layer};
    MUST(ckv_cache_append(cache, &call, view(&k, key, row.num_new_tokens, KV_HEADS),
                          view(&v, value, row.num_new_tokens, KV_HEADS), &error));
    if (row.num_query_tokens == 0) continue;
    const ckv_attention_out result = {.struct_size = sizeof result,
                                      .out = view(&o, out, 1, Q_HEADS)};
    const ckv_attend_args args = {
        .struct_size = sizeof args, .query = view(&q, query, 1, Q_HEADS), .out = &result};
    MUST(ckv_cache_attend(cache, &call, &args, &error));
  }
}

static void decode(ckv_cache* cache, ckv_plan* plan, int64_t sequence, int steps, float* out) {
  const ckv_step_row row = {
      .struct_size = sizeof row, .sequence = sequence, .num_new_tokens = 1, .num_query_tokens = 1};
  for (int i = 0; i < steps; ++i) step(cache, plan, row, out);
}

// ---------------------------------------------------------------------------------- saved bytes

typedef struct bytes {
  unsigned char* data;
  size_t size, at;
} bytes;

static int put(void* context, const void* data, size_t size) {
  bytes* to = context;
  unsigned char* grown = realloc(to->data, to->size + size);
  if (grown == NULL) return -1;
  to->data = grown;
  memcpy(to->data + to->size, data, size);
  to->size += size;
  return 0;
}

static int64_t get(void* context, void* data, size_t size) {
  bytes* from = context;
  const size_t left = from->size - from->at;
  const size_t count = size < left ? size : left;
  memcpy(data, from->data + from->at, count);
  from->at += count;
  return (int64_t)count;
}

static int disk_full(void* context, const void* data, size_t size) {
  (void)context, (void)data, (void)size;
  return 28;
}

// ------------------------------------------------------------------------------------- the life

static ckv_cache* make_cache(const ckv_config* config) {
  ckv_cache* cache = NULL;
  ckv_config wrong = *config;
  wrong.head_dim = 65;
  CHECK(ckv_cache_create(&wrong, NULL, &cache, &error) == CKV_CONFIG_ERROR);
  CHECK(strcmp(error.argument, "model.head_dim") == 0 && cache == NULL);
  wrong = *config;
  wrong.struct_size -= 1;
  CHECK(ckv_cache_create(&wrong, NULL, &cache, &error) == CKV_ARGUMENT_ERROR);
  MUST(ckv_cache_create(config, NULL, &cache, &error));
  return cache;
}

static ckv_plan* make_plan(ckv_cache* cache, const ckv_config* config, int64_t sequence,
                           void** scratch) {
  const ckv_plan_limits limits = {
      .struct_size = sizeof limits, .max_rows = 1, .max_new_tokens = PROMPT};
  ckv_memory_needs needs = {.struct_size = sizeof needs};
  MUST(ckv_cache_memory_needs(config, CKV_BACKEND_CPU, &limits, &needs, &error));
  const size_t size = (needs.workspace_bytes + 63) / 64 * 64;
  *scratch = aligned_alloc(64, size);
  const ckv_workspace workspace = {
      .struct_size = sizeof workspace, .data = *scratch, .bytes = size};
  // The first step of the plan: one token, taken back at once.
  const ckv_step_row row = {.struct_size = sizeof row, .sequence = sequence, .num_new_tokens = 1};
  const ckv_plan_args args = {.struct_size = sizeof args,
                              .rows = &row,
                              .num_rows = 1,
                              .limits = &limits,
                              .workspace = &workspace};
  ckv_plan* plan = NULL;
  MUST(ckv_cache_plan(cache, &args, NULL, &plan, &error));
  MUST(ckv_cache_truncate(cache, sequence, 0, NULL, &error));
  return plan;
}

/// Saves and loads; what comes back answers as the first does.
static void save_and_load(ckv_cache* cache, ckv_plan* plan, int64_t sequence) {
  float before[Q_HEADS * HEAD_DIM], after[Q_HEADS * HEAD_DIM];
  bytes file = {0};
  const ckv_writer full = {.struct_size = sizeof full, .write = disk_full};
  CHECK(ckv_cache_save(cache, sequence, &full, NULL, &error) == CKV_CALLBACK_ERROR);
  const ckv_writer writer = {.struct_size = sizeof writer, .context = &file, .write = put};
  MUST(ckv_cache_save(cache, sequence, &writer, NULL, &error));
  decode(cache, plan, sequence, 20, before);
  MUST(ckv_cache_remove(cache, sequence, NULL, &error));
  int64_t back = -1;
  const ckv_reader reader = {.struct_size = sizeof reader, .context = &file, .read = get};
  MUST(ckv_cache_load(cache, &reader, NULL, &back, &error));
  decode(cache, plan, back, 20, after);
  CHECK(memcmp(before, after, sizeof before) == 0);
  MUST(ckv_cache_remove(cache, back, NULL, &error));
  file.at = 0;
  file.data[file.size / 2] ^= 1;
  CHECK(ckv_cache_load(cache, &reader, NULL, &back, &error) == CKV_FORMAT_ERROR);
  free(file.data);
}

int main(void) {
  ckv_config config = {.struct_size = sizeof config};
  MUST(ckv_config_standard(&config, &error));
  config.num_layers = LAYERS;
  config.num_q_heads = Q_HEADS;
  config.num_kv_heads = KV_HEADS;
  config.head_dim = HEAD_DIM;
  config.dense_layers = 0;
  config.dense_threshold = 0;
  config.budget_tokens = 64;
  config.segment_tokens = 128;
  config.window_tokens = 32;
  config.max_sequences = 2;
  config.max_tokens = TOKENS;
  ckv_cache* cache = make_cache(&config);

  int64_t first = -1, child = -1;
  MUST(ckv_cache_add_sequence(cache, &first, &error));
  void* scratch = NULL;
  ckv_plan* plan = make_plan(cache, &config, first, &scratch);
  const ckv_step_row prompt = {.struct_size = sizeof prompt,
                               .sequence = first,
                               .num_new_tokens = PROMPT,
                               .phase = CKV_PREFILL_LAST};
  step(cache, plan, prompt, NULL);

  float out[Q_HEADS * HEAD_DIM], again[Q_HEADS * HEAD_DIM];
  decode(cache, plan, first, 40, out);
  MUST(ckv_cache_fork(cache, first, -1, NULL, &child, &error));
  CHECK(ckv_cache_add_sequence(cache, &(int64_t){0}, &error) == CKV_CAPACITY_ERROR);
  decode(cache, plan, first, 10, out);
  decode(cache, plan, child, 10, again);
  CHECK(memcmp(out, again, sizeof out) == 0);
  MUST(ckv_cache_truncate(cache, child, PROMPT + 45, NULL, &error));
  decode(cache, plan, child, 5, again);
  CHECK(memcmp(out, again, sizeof out) == 0);

  MUST(ckv_cache_remove(cache, child, NULL, &error));
  CHECK(ckv_cache_remove(cache, child, NULL, &error) == CKV_UNKNOWN_SEQUENCE);
  CHECK(strcmp(error.argument, "id") == 0);
  save_and_load(cache, plan, first);

  ckv_stats stats = {.struct_size = sizeof stats};
  MUST(ckv_cache_stats(cache, &stats, &error));
  CHECK(stats.held_bytes == 0 && stats.live_sequences == 0 && stats.kmeans_runs > 0);
  CHECK(ckv_cache_destroy(cache, &error) == CKV_STEP_ERROR);
  MUST(ckv_plan_destroy(plan, &error));
  MUST(ckv_cache_destroy(cache, &error));
  free(scratch);
  printf("clusterkv %s in C: a whole life\n", ckv_version());
  return 0;
}
