# SPDX-License-Identifier: Apache-2.0
"""Kernels of a whole replay touch no memory of the host but what is pinned: in this program, unlike in the
suites, its heap is not the executor's. Usage: device_memory.py CLUSTERKV_WITH_CHECKED_KERNELS WORK
"""
import os
import pathlib
import subprocess
import sys

tool, work = sys.argv[1], pathlib.Path(sys.argv[2])


def run(*arguments):
    done = subprocess.run([tool, *arguments], capture_output=True, text=True,
                          env=os.environ | {"CLUSTERKV_SIMT_ECHO": "1"})
    assert done.returncode == 0 and not done.stderr, f"{arguments}: exit code {done.returncode}\n{done.stderr}"


work.mkdir(parents=True, exist_ok=True)
trace = str(work / "trace.safetensors")
run("synth", trace, "--tokens", "600", "--layers", "2", "--queries", "12")
for residency in "device", "host", "hybrid":
    run("replay", trace, "--backend", "cuda", "--residency", residency, "--rows", "f16", "--threads", "1",
        "--budget", "64", *(["--device-bytes", "900000"] if residency == "hybrid" else []))
