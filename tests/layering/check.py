# SPDX-License-Identifier: Apache-2.0
"""Who may include whom, and how long a file may be. Usage: check.py ROOT

The table is that of docs/pipeline.md. A violation is printed as file:line: rule.
"""
import pathlib
import re
import sys

STAGES = ("cluster", "index", "select", "recall", "attend")
SOURCES = (".hpp", ".cpp", ".cuh", ".cu", ".h", ".c")
MAX_LINES = {"source": 500, "readme": 200}
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"')
FOLDERS = ("include", "kernels", "src", "tools", "examples", "integrations", "bench")


def allowed(path):
    """Prefixes that a file may include, in the form in which they are written."""
    parts = path.parts
    public, common, runtime = "clusterkv/", "kernels/common/", "src/runtime/"
    if parts[0] == "include" and path.suffix == ".h":  # C: nothing of C++
        return ("clusterkv/c_",)
    if parts[0] in ("include", "examples"):
        return (public,)
    if parts[0] == "integrations" and "tests" in parts:
        return None
    if parts[0] == "integrations":
        return (public, f"integrations/{parts[1]}/")
    if parts[0] == "tools":
        return (public, "tools/")
    if parts[0] == "kernels":
        own = f"kernels/{parts[1]}/"
        return (public, common) if parts[1] == "common" else (public, common, own)
    if parts[0] == "src" and len(parts) > 2:
        if parts[1] == "runtime":
            return (public, common, runtime)
        if parts[1] in ("cpu", "cuda"):  # a backend sees all stages
            contracts = tuple(f"kernels/{s}/{f}.hpp" for s in STAGES for f in (s, "rules", "count"))
            ops = tuple(f"kernels/{s}/cuda/{s}_ops.hpp" for s in STAGES)
            return (public, common, "src/", *contracts, *(ops if parts[1] == "cuda" else ()))
        stage = parts[1]
        contracts = (f"kernels/{stage}/{stage}.hpp", f"kernels/{stage}/rules.hpp")
        return (public, common, runtime, f"src/{stage}/", *contracts)
    if parts[0] == "src" and path.name.startswith("c_"):  # the C API sees the C++ API, as engines do
        return (public, "src/c_", "src/runtime/check.hpp")
    if parts[0] == "src":  # the files that see all stages
        contracts = tuple(f"kernels/{s}/{f}.hpp" for s in STAGES for f in (s, "rules"))
        return (public, common, "src/", *contracts)
    if parts[0] == "bench":
        ops = (f"kernels/{s}/cuda/{f}.hpp" for s in STAGES for f in (s + "_ops", "tuning"))
        return (public, "bench/", common, *ops, *(f"kernels/{s}/{f}.hpp" for s in STAGES for f in (s, "rules")))
    return None


def violations(root):
    for folder in FOLDERS:
        for file in sorted((root / folder).rglob("*")):
            if file.suffix not in SOURCES:
                continue
            path = file.relative_to(root)
            lines = file.read_text().splitlines()
            if len(lines) > MAX_LINES["source"]:
                yield f"{path}:{len(lines)}: longer than {MAX_LINES['source']} lines"
            prefixes = allowed(path)
            for number, line in enumerate(lines, 1):
                match = INCLUDE.match(line)
                if not match or prefixes is None:
                    continue
                if not match[1].startswith(prefixes):
                    yield f"{path}:{number}: includes {match[1]}, may include {', '.join(prefixes)}"
                if "/cpu/" in str(path) and "/cuda/" in match[1] or "/cuda/" in str(path) and "/cpu/" in match[1]:
                    yield f"{path}:{number}: cpu and cuda never include each other"
    readme = root / "README.md"
    if readme.exists() and len(readme.read_text().splitlines()) > MAX_LINES["readme"]:
        yield f"README.md: longer than {MAX_LINES['readme']} lines"


def main():
    found = list(violations(pathlib.Path(sys.argv[1])))
    print("\n".join(found) or "layering: no violation")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
