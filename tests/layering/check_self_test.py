# SPDX-License-Identifier: Apache-2.0
"""The layering check finds what it must: each line of CASES is one violation in a tree of its own."""
import pathlib
import sys
import tempfile

import check

CASES = {
    "include/clusterkv/a.hpp": '#include "src/core.hpp"',
    "include/clusterkv/c_a.h": '#include "clusterkv/types.hpp"',
    "src/c_a.cpp": '#include "src/core.hpp"',
    "kernels/select/select.hpp": '#include "kernels/attend/attend.hpp"',
    "kernels/common/a.hpp": '#include "kernels/select/select.hpp"',
    "kernels/attend/cpu/a.cpp": '#include "kernels/attend/cuda/a.cuh"',
    "src/runtime/a.cpp": '#include "src/recall/a.hpp"',
    "src/select/a.cpp": '#include "kernels/select/cpu/a.hpp"',
    "src/select/b.cpp": '#include "src/core.hpp"',
    "tools/clusterkv/a.cpp": '#include "src/core.hpp"',
    "examples/a.cpp": '#include "kernels/common/math.hpp"',
    "src/long.cpp": "\n" * 501,
}

missed = []
for name, text in CASES.items():
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / name
        file.parent.mkdir(parents=True)
        file.write_text(text)
        if not list(check.violations(pathlib.Path(folder))):
            missed.append(name)
print("missed:", missed) if missed else print(f"layering: found all {len(CASES)} violations")
sys.exit(1 if missed else 0)
