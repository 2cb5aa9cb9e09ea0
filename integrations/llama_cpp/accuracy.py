#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Tables and plots of what llama_evaluate found: accuracy.py FOLDER_OF_RESULTS DOCS"""

import json
import math
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "clusterkv"  # the same file from the same numbers
import matplotlib.pyplot as plt

ENGINE = "engine"


def perplexity_rows(results):
    """attention -> list of results, one a passage"""
    rows = defaultdict(list)
    for result in results:
        rows[result["attention"]].append(result)
    return rows


def perplexity_table(rows):
    yield "| attention | perplexity | to the engine's | KL | same token |"
    yield "|---|---|---|---|---|"
    for name, of in rows.items():
        each = [math.exp(r["nll"]) for r in of]
        change = [100 * (p / math.exp(e["nll"]) - 1) for p, e in zip(each, rows[ENGINE])]
        yield "| {} | {} | {} | {} | {} |".format(
            name,
            ", ".join(f"{p:.3f}" for p in each),
            ", ".join(f"{c:+.2f} %" for c in change) if name != ENGINE else "",
            ", ".join(f"{r['kl']:.4f}" for r in of) if name != ENGINE else "",
            ", ".join(f"{r['same']:.3f}" for r in of) if name != ENGINE else "",
        )


def greedy_table(results, tokens):
    rows = perplexity_rows(results)
    yield "| attention | same token | same up to the first difference |"
    yield "|---|---|---|"
    for name, of in rows.items():
        if name == ENGINE:
            continue
        yield "| {} | {:.3f} | {} |".format(
            name,
            sum(r["same"] for r in of) / len(of) / tokens,
            ", ".join(str(r["first_difference"]) for r in of),
        )


def speed_table(results):
    yield ("| tokens | threads | engine, ms | plugin, ms | | match | append | attend "
           "| clustering the prompt, s | of prefill, s | MiB, engine | held | resident |")
    yield "|---" * 13 + "|"
    for engine in results:
        if engine["attention"] != ENGINE:
            continue
        for r in results:
            if r["attention"] == ENGINE or any(r[k] != engine[k] for k in ("context", "threads")):
                continue
            cells = [
                f"{r['context']}",
                f"{r['threads']}",
                f"{1e3 * engine['seconds']:.2f}",
                f"{1e3 * r['seconds']:.2f}" + (" in place" if "in place" in r["attention"] else ""),
                f"{engine['seconds'] / r['seconds']:.1f}x",
                *(f"{1e3 * r[k]:.2f}" for k in ("match", "append", "attend")),
                f"{r['clustering']:.2f}",
                f"{r['prefill']:.1f}",
                *(f"{r['MiB'][k]:.0f}" for k in ("engine", "held", "resident")),
            ]
            yield "| " + " | ".join(cells) + " |"


def is_found(result, name):
    return result["answers"][name].strip().startswith(result["number"])


def retrieval_table(results):
    names = list(results[0]["answers"])
    others = [name for name in names if name != ENGINE]
    yield "| tokens | prompts | engine | " + " | ".join(others) + " |"
    yield "|---" * (3 + len(others)) + "|"
    for length in sorted({r["length"] for r in results}) + ["all"]:
        of = [r for r in results if length in ("all", r["length"])]
        solved = [r for r in of if is_found(r, ENGINE)]
        cells = [f"{length}", f"{len(of)}", f"{len(solved)}"]
        for name in others:
            kept = sum(is_found(r, name) for r in solved)
            alone = sum(is_found(r, name) for r in of) - kept
            cells.append(f"{kept} of {len(solved)}, and {alone} more")
        yield "| " + " | ".join(cells) + " |"


def plot_kl(rows, path):
    figure, axes = plt.subplots(figsize=(5, 3.2))
    for preset, marker in (("standard", "o"), ("paper", "s")):
        points = sorted(
            (int(name.split()[1]), sum(r["kl"] for r in of) / len(of))
            for name, of in rows.items()
            if name.startswith(preset)
        )
        axes.plot(*zip(*points), marker=marker, label=preset)
    noise = rows["engine, not flash"]
    axes.axhline(sum(r["kl"] for r in noise) / len(noise), color="gray", linestyle=":",
                 label="the engine's other attention")
    axes.set(xscale="log", yscale="log", xlabel="budget, tokens", ylabel="KL to the engine, nats")
    axes.set_xticks([b for b, _ in points], [str(b) for b, _ in points])
    axes.minorticks_off()
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def plot_retrieval(results, path):
    names = [ENGINE, "standard 512", "standard 256"]
    depths = sorted({r["depth"] for r in results})
    figure, axes = plt.subplots(figsize=(5, 3.2))
    for name, marker in zip(names, "os^"):
        shares = []
        for depth in depths:
            of = [r for r in results if r["depth"] == depth]
            shares.append(sum(is_found(r, name) for r in of) / len(of))
        places = [depth / max(1, depths[-1]) for depth in depths]
        axes.plot(places, shares, marker=marker, label=name, alpha=0.8)
    axes.set(xlabel="place of the number in the text, 0: its beginning", ylabel="found",
             ylim=(-0.05, 1.05))
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def write_table(page, mark, lines):
    begin, end = f"<!-- {mark} -->\n", f"<!-- end of {mark} -->"
    before, rest = page.read_text().split(begin)
    _, after = rest.split(end)
    page.write_text(before + begin + "\n".join(lines) + "\n" + end + after)


def main(folder, docs):
    """Of the results that are there."""

    def read(name):
        path = folder / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    if found := read("perplexity"):
        rows = perplexity_rows(found["results"])
        plot_kl(rows, docs / "accuracy-kl.svg")
        write_table(docs / "accuracy.md", "perplexity", perplexity_table(rows))
    if found := read("greedy"):
        write_table(docs / "accuracy.md", "greedy", greedy_table(found["results"], found["tokens"]))
    if found := read("retrieval"):
        plot_retrieval(found["results"], docs / "accuracy-retrieval.svg")
        write_table(docs / "accuracy.md", "retrieval", retrieval_table(found["results"]))
    if found := read("speed"):
        write_table(docs / "llama-cpp.md", "speed", speed_table(found["results"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
