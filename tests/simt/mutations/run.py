# SPDX-License-Identifier: Apache-2.0
"""Breaks a kernel in one place at a time and expects the executor or a suite to say so.

Usage: run.py COMPILE_COMMANDS LINK_COMMAND WORK [--write | NAME ...]. Called by ctest, see
../CMakeLists.txt; mutations.txt is the list. --write writes docs/broken-kernels.md.
"""
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent.parent
DISPATCH = "kernels/common/dispatch.hpp"


def read_mutations():
    """[(name, file, unit, suite, expected report, old text, new text)]"""
    result = []
    for chunk in (HERE / "mutations.txt").read_text().split("\n---\n")[1:]:
        head, texts = chunk.split("\n<=\n")
        old, new = (texts + "\n").split("\n=>\n")
        name, file, unit, suite, expected = [field.strip() for field in head.split(" | ")]
        result.append((name, file, unit, suite, expected, old, new.rstrip("\n")))
    return result


def compile_command(commands, unit):
    """How a kernel is compiled for the checking lane: words without the output, output, folder."""
    for entry in commands:
        words = shlex.split(entry["command"])
        simt = "-fsanitize=thread" in words or unit.startswith("src/") and "-DCLUSTERKV_SIMT" in words
        if entry["file"].endswith(unit) and simt:
            at = words.index("-o")
            return words[:at] + words[at + 2:], words[at + 1], entry["directory"]
    raise SystemExit(f"no command compiles {unit}")


def keep_head_dims(suite, overlay):
    """Kernels for the head dims that the suites name, or 64: compiling the others takes most of the time."""
    dims = sorted(set(re.findall(r"_d(\d+)", suite))) or ["64"]
    text, places = re.subn(r"<64, [0-9, ]+>", f"<{', '.join(dims)}>", (ROOT / DISPATCH).read_text())
    if places != 1:
        raise SystemExit(f"{DISPATCH}: its head dims stand {places} times")
    (overlay / DISPATCH).parent.mkdir(parents=True, exist_ok=True)
    (overlay / DISPATCH).write_text(text)


def build(mutation, commands, link, work):
    """A test binary with one broken kernel. The broken file comes first in the include path."""
    name, file, unit, suite, _, old, new = mutation
    text = (ROOT / file).read_text()
    if text.count(old) != 1:
        raise SystemExit(f"{name}: the text to replace stands {text.count(old)} times in {file}")
    overlay = work / name
    (overlay / file).parent.mkdir(parents=True, exist_ok=True)
    (overlay / file).write_text(text.replace(old, new))
    keep_head_dims(suite, overlay)
    words, output, directory = compile_command(commands, unit)
    if file == unit:
        words = [str(overlay / file) if word.endswith(unit) else word for word in words]
    broken = overlay / "broken.o"
    first = next(i for i, word in enumerate(words) if word.startswith("-I"))
    words = words[:first] + [f"-I{overlay}", "-w"] + words[first:] + ["-g1"]  # lines are enough
    launcher = ["ccache"] if shutil.which("ccache") else []
    subprocess.run(launcher + words + ["-o", str(broken)], cwd=directory, check=True)
    # First, so that its copies of what headers define are taken, not another unit's.
    others = [word for word in link[1:] if not os.path.normpath(word).endswith(output)]
    subprocess.run([link[0], str(broken), *others, "-o", str(overlay / "suites")], cwd=directory,
                   check=True)
    return overlay / "suites"


def check(mutation, binary):
    """(what caught the mutation, or None; the output)"""
    name, _, _, suite, expected, _, _ = mutation
    try:
        run = subprocess.run([str(binary), "--gtest_brief=1", f"--gtest_filter={suite}"],
                             timeout=300, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             text=True, env=os.environ | {"CLUSTERKV_SIMT_ECHO": "1"})
    finally:
        binary.unlink()
    if run.returncode < 0:
        run.stdout += f"\ndied of signal {-run.returncode}"
    found = [line for line in run.stdout.splitlines() if re.search(expected, line)]
    report = re.sub(rf", where GetParam.*| \(\d+ ms\)|{re.escape(str(ROOT))}/", "",
                    found[0].strip()) if found else None
    print(f"{name}: {report or 'NOT CAUGHT'}", flush=True)
    return report, f"{name}: expected '{expected}'\n{run.stdout[-2000:]}"


def write_table(mutations, results):
    lines = ["# Kernels broken on purpose", "",
             "Written by `tests/simt/mutations/run.py --write`: each line of `tests/simt/mutations/mutations.txt`",
             "with the first report of the executor, or of the suite, that caught it. The test runs them all.", "",
             "| broken | file | caught by |", "|---|---|---|"]
    lines += [f"| {m[0]} | {m[1]} | {report} |" for m, (report, _) in zip(mutations, results)]
    (ROOT / "docs" / "broken-kernels.md").write_text("\n".join(lines) + "\n")


def main():
    commands = json.loads(pathlib.Path(sys.argv[1]).read_text())
    link = shlex.split(pathlib.Path(sys.argv[2]).read_text())
    work = pathlib.Path(sys.argv[3]).resolve()
    work.mkdir(parents=True, exist_ok=True)
    wanted = [name for name in sys.argv[4:] if name != "--write"]
    mutations = [m for m in read_mutations() if not wanted or m[0] in wanted]
    results = [check(m, build(m, commands, link, work)) for m in mutations]
    failures = [output for report, output in results if report is None]
    missed = [m[0] for m, (report, _) in zip(mutations, results) if report is None]
    if "--write" in sys.argv and not failures:
        write_table(mutations, results)
    print("\n".join(failures))
    print(f"{len(mutations) - len(failures)} of {len(mutations)} caught", *missed and ["but", *missed])
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
