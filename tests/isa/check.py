# SPDX-License-Identifier: Apache-2.0
"""Functions that the linker could take from one instruction set for all. Usage: check.py NM OBJECT...

Every function that an object of kernels/<stage>/cpu defines for others must have the instruction set in
its name; a weak one without it (an inline function of a header that was not inlined) could be taken by
code that runs on a CPU without these instructions (docs/decisions/005).
"""
import subprocess
import sys


def shared(nm, objects):
    for path in objects:
        isa = path.split("clusterkv_cpu_")[1].split(".dir")[0]
        listing = subprocess.run([nm, "-C", "--defined-only", path], check=True, capture_output=True, text=True)
        for line in listing.stdout.splitlines():  # data ("V") has no instructions
            _, kind, name = line.split(maxsplit=2)
            if kind in "Wu" and f"::{isa}::" not in name:
                yield f"{path}: {kind} {name}"


def main():
    found = list(shared(sys.argv[1], sys.argv[2:]))
    print("\n".join(found) or f"{len(sys.argv) - 2} objects: no function shared between instruction sets")
    return 1 if found or len(sys.argv) < 3 else 0


if __name__ == "__main__":
    sys.exit(main())
