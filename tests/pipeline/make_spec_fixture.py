#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes what an independent NumPy form of the algorithm chooses on the embedded trace.

    make_spec_fixture.py SPEC.py TRACE.safetensors OUT.bin

Little-endian. Header: 8 bytes "CKVSPEC1", then int32 kv_heads, segments, queries, budgets, and the
budgets. Per KV head and segment: int32 clusters, uint16 sizes, uint16 token positions in stored
order. Per index type (int8, f32), budget, KV head and query: uint64 FNV-1a over the chosen token
positions, ascending, as uint32; float32 relative distance of the votes on both sides of the cut.
"""
import importlib.util
import struct
import sys

import numpy as np

BUDGETS = (128, 256, 512, 1024)


def load_spec(path):
    module_spec = importlib.util.spec_from_file_location("spec", path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


def fnv1a(positions):
    state = 0xCBF29CE484222325
    for byte in np.asarray(positions, "<u4").tobytes():
        state = (state ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return state


def distance_at_cut(queries, segments, scale, budget):
    """How far, relatively, votes are from another choice."""
    score = np.concatenate(
        [scale * queries @ s["mean_key"].T
         + np.log1p(s["spread"] * (0.5 * scale**2 * (queries**2) @ s["profile"])[:, None])
         for s in segments], 1)
    p = np.exp(score - score.max(1, keepdims=True))
    vote = (p / p.sum(1, keepdims=True)).mean(0)
    size = np.concatenate([s["size"] for s in segments])
    best = np.lexsort((np.arange(len(vote)), -vote))
    last = int(np.searchsorted(np.cumsum(size[best]), budget))
    distances = []
    if last + 1 < len(best):
        distances.append((vote[best[last]] - vote[best[last + 1]]) / vote[best[last]])
    if last > 0:
        distances.append((vote[best[last - 1]] - vote[best[last]]) / vote[best[last - 1]])
    return min(distances)


def main(spec_path, trace_path, out_path):
    spec = load_spec(spec_path)
    tensors, meta = spec.load_trace(trace_path)
    layer = next(name.split(".")[1] for name in tensors if name.startswith("layers."))
    key, value, query = (tensors[f"layers.{layer}.{name}"].astype(np.float32)
                         for name in ("key", "value", "query"))
    scale, start = float(meta["softmax_scale"]), int(meta["query_start"])
    kv_heads = int(meta["kv_heads"])
    group = int(meta["query_heads"]) // kv_heads
    cuts = list(range(spec.SINKS, start, spec.SEGMENT)) + [start]
    spans = list(zip(cuts, cuts[1:]))
    index = {name: [[spec.build_segment(key[a:b, h], value[a:b, h], quantise) for a, b in spans]
                    for h in range(kv_heads)]
             for name, quantise in (("int8", spec.int8_rows), ("f32", np.asarray))}
    with open(out_path, "wb") as out:
        out.write(b"CKVSPEC1")
        out.write(struct.pack("<4i", kv_heads, len(spans), len(query), len(BUDGETS)))
        out.write(struct.pack(f"<{len(BUDGETS)}i", *BUDGETS))
        for h in range(kv_heads):
            for (first, _), segment in zip(spans, index["f32"][h]):
                out.write(struct.pack("<i", len(segment["size"])))
                out.write(segment["size"].astype("<u2").tobytes())
                out.write((segment["order"] + first).astype("<u2").tobytes())
        for name in ("int8", "f32"):
            for budget in BUDGETS:
                for h in range(kv_heads):
                    for i in range(len(query)):
                        n = start + i + 1
                        q = query[i, h * group:(h + 1) * group]
                        _, attended = spec.attend(q, key[:n, h], value[:n, h], index[name][h],
                                                  scale, budget, start)
                        chosen = spec.SINKS + np.flatnonzero(attended[spec.SINKS:start])
                        distance = distance_at_cut(q, index[name][h], scale, budget)
                        out.write(struct.pack("<Qf", fnv1a(chosen), distance))


if __name__ == "__main__":
    main(*sys.argv[1:])
