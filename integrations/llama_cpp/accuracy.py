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


def found(result, name):
    return result["answers"][name].strip().startswith(result["number"])


def retrieval_table(results):
    names = list(results[0]["answers"])
    others = [name for name in names if name != ENGINE]
    yield "| tokens | prompts | engine | " + " | ".join(others) + " |"
    yield "|---" * (3 + len(others)) + "|"
    for length in sorted({r["length"] for r in results}) + ["all"]:
        of = [r for r in results if length in ("all", r["length"])]
        solved = [r for r in of if found(r, ENGINE)]
        cells = [f"{length}", f"{len(of)}", f"{len(solved)}"]
        for name in others:
            kept = sum(found(r, name) for r in solved)
            alone = sum(found(r, name) for r in of) - kept
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
    names = list(results[0]["answers"])
    depths = sorted({r["depth"] for r in results})
    figure, axes = plt.subplots(figsize=(5, 3.2))
    for name, marker in zip(names, "os^v"):
        shares = []
        for depth in depths:
            of = [r for r in results if r["depth"] == depth]
            shares.append(sum(found(r, name) for r in of) / len(of))
        places = [depth / max(1, depths[-1]) for depth in depths]
        axes.plot(places, shares, marker=marker, label=name, alpha=0.8)
    axes.set(xlabel="place of the number in the text, 0: its beginning", ylabel="found",
             ylim=(-0.05, 1.05))
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main(folder, docs):
    perplexity = json.loads((folder / "perplexity.json").read_text())
    retrieval = json.loads((folder / "retrieval.json").read_text())
    rows = perplexity_rows(perplexity["results"])
    plot_kl(rows, docs / "accuracy-kl.svg")
    plot_retrieval(retrieval["results"], docs / "accuracy-retrieval.svg")
    text = (docs / "accuracy.md").read_text()
    for mark, lines in (
        ("perplexity", perplexity_table(rows)),
        ("retrieval", retrieval_table(retrieval["results"])),
    ):
        begin, end = f"<!-- {mark} -->\n", f"<!-- end of {mark} -->"
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = before + begin + "\n".join(lines) + "\n" + end + after
    (docs / "accuracy.md").write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
