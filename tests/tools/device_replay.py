# SPDX-License-Identifier: Apache-2.0
"""Replays the embedded trace with both backends: `--backend cuda` errs, chooses and finds rows again as the
CPU does. Usage: device_replay.py CLUSTERKV CLUSTERKV_WITH_CUDA ROOT WORK
"""
import json
import pathlib
import subprocess
import sys

TRACE = "data/smollm2-135m-genesis-4k-layer9.safetensors"
QUERIES, BUDGET = 256, 256
# Shares of the CPU's figure. Clusters differ where rounding moves a key over a border.
CLOSE = {"error_mean": .02, "error_p95": .05, "mass_recall": .002, "token_recall": .01,
         "hit_rate_r1": .01, "hit_rate_r2": .01, "hit_rate_r3": .01, "attended_tokens": 0,
         "bytes_touched": .02}
root, work = pathlib.Path(sys.argv[3]), pathlib.Path(sys.argv[4])


def replay(tool, backend, residency):
    table = work / f"{backend}_{residency}.json"
    command = [tool, "replay", TRACE, "--backend", backend, "--residency", residency, "--threads", "1",
               "--queries", str(QUERIES), "--budget", str(BUDGET), "--json", str(table)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: exit code {done.returncode}\n{done.stderr}"
    row, = json.loads(table.read_text())
    return row


work.mkdir(parents=True, exist_ok=True)
cpu = replay(sys.argv[1], "cpu", "host")
cuda = replay(sys.argv[2], "cuda", "host")
for key, share in CLOSE.items():
    print(f"{key:16} {cpu[key]:12.5f} {cuda[key]:12.5f}")
    assert abs(cuda[key] - cpu[key]) <= share * abs(cpu[key]), key
