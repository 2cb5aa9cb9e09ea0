#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The paper preset in NumPy from the library's seeded starts: the table in recorded_test.cpp.

    make_paper_figures.py SPEC.py TRACE.safetensors

Prints one row a seed: mean relative error at budgets 128, 256, 512 and 1024 over 256 queries.
"""
import importlib.util
import sys

import numpy as np

BUDGETS = (128, 256, 512, 1024)
SINKS, TOKENS_PER_CLUSTER, ITERATIONS, QUERIES, SEEDS = 16, 80, 10, 256, 9
MASK = (1 << 64) - 1


def splitmix64(state):
    state = (state + 0x9E3779B97F4A7C15) & MASK
    z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return state, z ^ (z >> 31)


def random_starts(seed, layer, kv_head, first_token, num_tokens, num_clusters):
    state = seed
    for part in (layer, kv_head, first_token):
        state = splitmix64(state)[1] ^ part
    tokens = np.arange(num_tokens)
    for i in range(num_clusters):
        state, z = splitmix64(state)
        other = i + (((z >> 32) * (num_tokens - i)) >> 32)
        tokens[[i, other]] = tokens[[other, i]]
    return tokens[:num_clusters]


def kmeans(keys, centroids):
    for _ in range(ITERATIONS):
        unit = centroids / np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), 1e-12)
        labels = (keys @ unit.T).argmax(1)
        count = np.bincount(labels, minlength=len(centroids))
        sums = np.zeros_like(centroids)
        np.add.at(sums, labels, keys)
        centroids = np.where(count[:, None] > 0, sums / np.maximum(count, 1)[:, None], centroids)
    return np.unique(labels, return_inverse=True)[1]


def attention(logits, values):
    weight = np.exp(logits - logits.max())
    return weight @ values / weight.sum()


def errors_of_head(starts, key, value, query, start, scale):
    """[budget, query * head]"""
    keys = key[SINKS:start]
    labels = kmeans(keys, keys[starts])
    size = np.bincount(labels)
    mean = np.stack([keys[labels == c].mean(0) for c in range(len(size))])
    order = SINKS + np.argsort(labels, kind="stable")
    offset = np.cumsum(size) - size
    errors = [[] for _ in BUDGETS]
    for i in range(QUERIES):
        n = start + i + 1
        for q in query[i]:
            best = np.argsort(-(mean @ q), kind="stable")
            logits = scale * key[:n] @ q
            full = attention(logits, value[:n])
            for b, budget in enumerate(BUDGETS):
                left = np.clip(budget - (np.cumsum(size[best]) - size[best]), 0, size[best])
                rows = [order[offset[c]:offset[c] + taken] for c, taken in zip(best, left)]
                rows = np.concatenate([np.arange(SINKS), *rows, np.arange(start, n)])
                out = attention(logits[rows], value[rows])
                errors[b].append(np.linalg.norm(out - full) / np.linalg.norm(full))
    return errors


def main(spec_path, trace_path):
    module_spec = importlib.util.spec_from_file_location("spec", spec_path)
    spec = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(spec)
    tensors, meta = spec.load_trace(trace_path)
    layer = next(int(name.split(".")[1]) for name in tensors if name.startswith("layers."))
    key, value, query = (tensors[f"layers.{layer}.{name}"].astype(np.float32)
                         for name in ("key", "value", "query"))
    scale, start = float(meta["softmax_scale"]), int(meta["query_start"])
    kv_heads = int(meta["kv_heads"])
    group = int(meta["query_heads"]) // kv_heads
    clustered = start - SINKS
    num_clusters = -(-clustered // TOKENS_PER_CLUSTER)
    for seed in range(1, SEEDS + 1):
        errors = [errors_of_head(random_starts(seed, layer, h, SINKS, clustered, num_clusters),
                                 key[:, h], value[:, h], query[:, h * group:(h + 1) * group],
                                 start, scale)
                  for h in range(kv_heads)]
        print("    {" + ", ".join(f"{x:.6f}" for x in np.mean(errors, axis=(0, 2))) + "},")


if __name__ == "__main__":
    main(*sys.argv[1:])
