# SPDX-License-Identifier: Apache-2.0
"""Runs the command line as a user does. Usage: command_line.py CLUSTERKV ROOT WORK CASE

A case is a function below. Each runs in a folder of its own under WORK.
"""
import json
import pathlib
import re
import shlex
import subprocess
import sys

TRACE = "data/smollm2-135m-genesis-4k-layer9.safetensors"
JSON_KEYS = ["preset", "layer", "budget", "error_mean", "error_p95", "mass_recall", "token_recall",
             "hit_rate_r1", "hit_rate_r2", "hit_rate_r3", "attended_tokens", "bytes_touched",
             "step_us", "dense_us"]
tool, root, work = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])


def run(*arguments):
    return subprocess.run([tool, *map(str, arguments)], cwd=root, capture_output=True, text=True)


def succeed(*arguments):
    done = run(*arguments)
    assert done.returncode == 0, f"{arguments}: exit code {done.returncode}\n{done.stderr}"
    assert done.stderr == "", f"{arguments}: not a terminal, but on standard error: {done.stderr}"
    return done.stdout


def fail(message, *arguments, code=None):
    """Ends with an exit code that is not 0, and says why on standard error."""
    done = run(*arguments)
    assert done.returncode > 0, f"{arguments}: exit code {done.returncode}"
    assert code is None or done.returncode == code, f"{arguments}: exit code {done.returncode}"
    assert message in done.stderr, f"{arguments}: no '{message}' in: {done.stderr}"


def lines_with(text, pattern):
    return [line for line in text.splitlines() if re.search(pattern, line)]


def readme():
    """Each command that the README quotes, with few queries where it names none."""
    commands = re.findall(r"^clusterkv ([^\n]+)", (root / "README.md").read_text(), re.M)
    assert {c.split()[0] for c in commands} == {"replay", "sweep", "inspect", "synth"}, commands
    for command in commands:
        arguments = shlex.split(command.replace("/tmp/", f"{work}/"))
        if arguments[0] in ("replay", "sweep") and "--queries" not in arguments:
            arguments += ["--queries", "4"]
        assert succeed(*arguments).strip(), command


def replay_json():
    file = work / "table.json"
    out = succeed("replay", TRACE, "--queries", 3, "--preset", "standard,paper", "--budget", "128,256",
                  "--json", file)
    rows = json.loads(file.read_text())
    assert [(r["preset"], r["budget"]) for r in rows] == [
        ("standard", 128), ("standard", 256), ("paper", 128), ("paper", 256)], rows
    assert all(list(r) == JSON_KEYS for r in rows), rows
    assert all(r["layer"] == 9 and 0 < r["error_mean"] < 1 for r in rows), rows
    assert len(lines_with(out, r"^(standard|paper) ")) == 4, out


def sweep_clusters():
    out = succeed("sweep", "clusters", TRACE, "--queries", 2)
    assert len(lines_with(out, r"^ +\d+ ")) == 7, out
    assert "store + cluster ms" in out, out


def sweep_iterations():
    out = succeed("sweep", "iterations", TRACE, "--queries", 2)
    assert len(lines_with(out, r"^ +\d+ ")) == 6, out


def sweep_retain():
    out = succeed("sweep", "retain", TRACE, "--queries", 3)
    assert len(lines_with(out, r"^ +9 ")) == 5, out


def inspect():
    file = work / "three.safetensors"
    succeed("synth", file, "--tokens", 900, "--layers", 3, "--queries", 8)
    assert len(lines_with(succeed("inspect", file), r"^layer \d+: \d+ clusters")) == 3
    one = succeed("inspect", file, "--layers", 1, "--tokens-per-cluster", 40)
    found = lines_with(one, r"^layer \d+: \d+ clusters")
    assert len(found) == 1 and found[0].startswith("layer 1: "), one
    assert found != lines_with(succeed("inspect", file, "--layers", 1), r"^layer 1: \d+ clusters")
    fail("--layers: 7", "inspect", file, "--layers", 7, code=1)
    for option in ("--backend", "--queries", "--residency", "--tail"):
        fail(option, "inspect", file, option, "1")


def version_and_help():
    assert re.match(r"\d+\.\d+\.\d+\n$", succeed("--version"))
    for command in ("replay", "sweep", "inspect", "synth"):
        assert "--help" in succeed(command, "--help")


def bad_arguments():
    fail("CUDA was not built", "replay", TRACE, "--backend", "cuda", code=1)
    fail("--budget", "replay", TRACE, "--budget", 0)
    fail("--layers: 7", "replay", TRACE, "--layers", 7, code=1)
    fail("--layers: 9,9", "replay", TRACE, "--layers", "9,9", code=1)
    fail("--retain", "replay", TRACE, "--retain", 65)
    fail("--preset", "replay", TRACE, "--preset", "best")
    fail("cluster.tokens_per_cluster", "replay", TRACE, "--tokens-per-cluster", 0, code=1)
    fail("what", "sweep", "colours", TRACE)
    fail("trace", "replay", work / "missing.safetensors")
    fail("--json", "replay", TRACE, "--queries", 1, "--budget", 64, "--json", "/nowhere/at/all", code=1)
    fail("subcommand", *[])
    fail("--tokens", "synth", work / "x", "--tokens", 1, code=1)


def damaged_files():
    good = (root / TRACE).read_bytes()
    header = int.from_bytes(good[:8], "little")
    cases = {"empty": b"", "short": good[:5], "cut": good[:len(good) // 2],
             "lying": (1 << 62).to_bytes(8, "little") + good[8:],
             "text": good[:8] + b"x" * header + good[8 + header:],
             "dim": good.replace(b'"head_dim": "64"', b'"head_dim": "60"')}
    for name, data in cases.items():
        file = work / f"{name}.safetensors"
        file.write_bytes(data)
        for command in (["replay"], ["inspect"], ["sweep", "retain"]):
            fail("clusterkv: ", *command, file, code=1)


work = work / sys.argv[4]
work.mkdir(parents=True, exist_ok=True)
globals()[sys.argv[4]]()
print(f"{sys.argv[4]}: as expected")
