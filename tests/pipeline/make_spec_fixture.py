#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes what an independent NumPy form of the algorithm chooses on the embedded trace.

    make_spec_fixture.py SPEC.py TRACE.safetensors OUT.bin

Little-endian. Header: 8 bytes "CKVSPEC1", then int32 kv_heads, segments, queries, budgets, and the
budgets. Per KV head and segment: int32 clusters, uint16 sizes, uint16 token positions in stored
order. Per way (int8 index, f32 index, int8 index and 16-bit queries), budget, KV head and query:
uint64 FNV-1a over the chosen token positions, ascending, as uint32; float32 relative distance of
the votes on both sides of the cut.
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


def rounded_query(queries):
    """As the library rounds them to score an int8 index."""
    step = np.abs(queries).max(1, keepdims=True) / 32512
    return np.rint(queries / step) * step


def choose(queries, scored, segments, scale, budget):
    """Chosen positions, ascending, and how far, relatively, votes are from another choice."""
    score = np.concatenate(
        [scale * scored @ s["mean_key"].T
         + np.log1p(s["spread"] * (0.5 * scale**2 * (queries**2) @ s["profile"])[:, None])
         for s in segments], 1)
    p = np.exp(score - score.max(1, keepdims=True))
    vote = (p / p.sum(1, keepdims=True)).mean(0)
    size = np.concatenate([s["size"] for s in segments])
    best = np.lexsort((np.arange(len(vote)), -vote))
    left = np.clip(budget - (np.cumsum(size[best]) - size[best]), 0, size[best])
    order = np.concatenate([s["order"] + s["first"] for s in segments])
    offset = np.cumsum(size) - size
    chosen = np.concatenate([order[offset[c]:offset[c] + taken] for c, taken in zip(best, left)])
    last = int(np.searchsorted(np.cumsum(size[best]), budget))
    sides = [(i, i + 1) for i in (last - 1, last) if 0 <= i and i + 1 < len(best)]
    distance = min((vote[best[i]] - vote[best[j]]) / vote[best[i]] for i, j in sides)
    return np.sort(chosen), distance


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
    index = {}
    for name, quantise in (("int8", spec.int8_rows), ("f32", np.asarray)):
        index[name] = [[dict(spec.build_segment(key[a:b, h], value[a:b, h], quantise), first=a)
                        for a, b in spans] for h in range(kv_heads)]
    with open(out_path, "wb") as out:
        out.write(b"CKVSPEC1")
        out.write(struct.pack("<4i", kv_heads, len(spans), len(query), len(BUDGETS)))
        out.write(struct.pack(f"<{len(BUDGETS)}i", *BUDGETS))
        for h in range(kv_heads):
            for (first, _), segment in zip(spans, index["f32"][h]):
                out.write(struct.pack("<i", len(segment["size"])))
                out.write(segment["size"].astype("<u2").tobytes())
                out.write((segment["order"] + first).astype("<u2").tobytes())
        for name, rounded in (("int8", False), ("f32", False), ("int8", True)):
            for budget in BUDGETS:
                for h in range(kv_heads):
                    for i in range(len(query)):
                        q = query[i, h * group:(h + 1) * group]
                        scored = rounded_query(q) if rounded else q
                        chosen, distance = choose(q, scored, index[name][h], scale, budget)
                        if not rounded:
                            n = start + i + 1
                            _, attended = spec.attend(q, key[:n, h], value[:n, h], index[name][h],
                                                      scale, budget, start)
                            wanted = spec.SINKS + np.flatnonzero(attended[spec.SINKS:start])
                            assert np.array_equal(chosen, wanted)
                        out.write(struct.pack("<Qf", fnv1a(chosen), distance))


if __name__ == "__main__":
    main(*sys.argv[1:])
