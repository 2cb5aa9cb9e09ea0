# SPDX-License-Identifier: Apache-2.0
"""What the README quotes exists. Usage: check_readme.py ROOT CLUSTERKV

Each fenced C++ snippet is a run of lines of an example; each `clusterkv ...` command names a
subcommand and options that the tool has; each path in backticks exists.
"""
import pathlib
import re
import subprocess
import sys

root, tool = pathlib.Path(sys.argv[1]), sys.argv[2]
readme = (root / "README.md").read_text()
examples = [e.read_text() for e in (root / "examples").glob("*.cpp")]
faults = []

for snippet in re.findall(r"```cpp\n(.*?)```", readme, re.S):
    if not any(snippet in example for example in examples):
        faults.append(f"snippet is in no example: {snippet[:60]!r}")
for command in re.findall(r"^(?:\S*/)?clusterkv (\w+)([^\n#]*)", readme, re.M):
    run = subprocess.run([tool, command[0], "--help"], capture_output=True, text=True)
    if run.returncode != 0:
        faults.append(f"no subcommand {command[0]}")
    faults += [f"{command[0]}: no option {o}" for o in re.findall(r"--[\w-]+", command[1])
               if o not in run.stdout]
for path in re.findall(r"`((?:src|kernels|include|tests|docs|scripts|examples|data|bench|tools)/[\w./-]+)`", readme):
    if not (root / path).exists():
        faults.append(f"no such path: {path}")

print("\n".join(faults) or "readme: all quotes hold")
sys.exit(1 if faults else 0)
