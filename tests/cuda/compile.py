# SPDX-License-Identifier: Apache-2.0
"""Compiles every .cu file for each architecture, warnings as errors, and reads registers, stack,
spills and instructions off the result.

Usage: compile.py NVCC WORK [--write]. Fails if a kernel spills or has a stack, if it takes more registers
or has other counts of matrix instructions, asynchronous copies and 16-byte loads than
docs/cuda-kernels.md says, if matrix products, or 16-byte loads of rows, are not those of the design, or if
a file takes more than 30 s of CPU or 700 MB. --write writes docs/cuda-kernels.md.
Exit status 77 without nvcc: ctest counts the test as skipped.
"""
import collections
import concurrent.futures
import os
import pathlib
import re
import struct
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TABLE = ROOT / "docs" / "cuda-kernels.md"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
FLAGS = ("-std=c++20 --expt-relaxed-constexpr -fmad=false -Werror all-warnings "
         "-Xcompiler -Wall,-Wextra,-Werror -Xptxas -v,-warn-spills -cubin").split()
SECONDS, MEGABYTES = 30, 700

# Low 12 bits of an instruction, from cubins of known kernels. LDG, LDGSTS and the generic LD have their
# size in bits 73 .. 75; that of LDGSTS is written in another way on sm_100.
OPCODES = {0x23C: "HMMA", 0x237: "IMMA", 0x226: "IDP", 0x83B: "LDSM", 0xFAE: "LDGSTS", 0x387: "STL", 0x983: "LDL"}
LOADS, SIXTEEN_BYTES = {0x981: "LDG.128", 0x980: "LD.128"}, 6

Kernel = collections.namedtuple("Kernel", "name arch registers shared stack spills counts")


def sections(cubin):
    """(name, bytes) of the sections of an ELF file."""
    start, = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<HHH", cubin, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", cubin, start + i * size) for i in range(count)]
    for header in headers:
        at = headers[names][4] + header[0]
        yield cubin[at:cubin.index(b"\0", at)].decode(), cubin[header[4]:header[4] + header[5]]


def census(code, arch):
    counts = collections.Counter()
    for at in range(0, len(code) - 15, 16):
        low, high = struct.unpack_from("<QQ", code, at)
        opcode = low & 0xFFF
        size = (high >> 9) & 7
        if opcode in OPCODES:
            counts[OPCODES[opcode]] += 1
        if opcode in LOADS and size == SIXTEEN_BYTES:
            counts[LOADS[opcode]] += 1
        if OPCODES.get(opcode) == "LDGSTS" and size != (4 if arch == "sm_100" else SIXTEEN_BYTES):
            counts["narrow copies"] += 1
    return counts


def short_name(mangled):
    name = subprocess.run(["c++filt", mangled], capture_output=True, text=True).stdout.strip()
    name = re.sub(r"\(anonymous namespace\)::|clusterkv::|cuda::|v0::|_NV_ANON_NAMESPACE::", "", name)
    name = re.sub(r"^void ", "", name).split("(", 1)[0] if "<" not in name else name
    match = re.match(r"(?:void )?(\w+?)(?:_kernel)?(<.*?>)?\(", name + "(")
    arguments = (match[2] or "").replace("(DType)1", "f16").replace("(DType)2", "bf16")
    for value, word in enumerate(("int8", "bf16", "f32")):
        arguments = arguments.replace(f"(IndexDType){value}", word)
    for value, word in enumerate(("mma", "dp4a")):
        arguments = arguments.replace(f"(IntegerMath){value}", word)
    arguments = arguments.replace("Size", "").replace("(int)", "").strip("<>")
    return match[1] + (" " + arguments if arguments else "")


def shared_bytes(ptx):
    """Dynamic shared memory by kernel: dynamic_shared() leaves a comment."""
    result = {}
    for entry in re.split(r"\.entry\s+", ptx)[1:]:
        sizes = [int(size) for size in re.findall(r"// shared bytes: (\d+)", entry)]
        result[re.match(r"\w+", entry)[0]] = max(sizes, default=0)
    return result


def compile_one(nvcc, work, file, arch):
    """(kernels, complaints, seconds of CPU) of one file."""
    cubin = work / f"{file.stem}.{arch}.cubin"
    kept = work / f"{file.stem}.{arch}"
    kept.mkdir(exist_ok=True)
    command = [nvcc, *FLAGS, "--keep", f"--keep-dir={kept}", f"-arch={arch}", f"-I{ROOT}", f"-I{ROOT / 'include'}", str(file), "-o",
               str(cubin)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    log = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        return [], [f"{file.name} {arch}: {log[-2000:]}"], 0
    complaints = []
    cpu = usage.ru_utime + usage.ru_stime
    if cpu > SECONDS or usage.ru_maxrss / 1024 > MEGABYTES:
        complaints.append(f"{file.name} {arch}: {cpu:.0f} s, {usage.ru_maxrss / 1024:.0f} MB")
    code = dict(sections(cubin.read_bytes()))
    shared = shared_bytes((kept / f"{file.stem}.ptx").read_text())
    kernels = []
    pattern = (r"Compiling entry function '(\S+)'[^\n]*\n[^\n]*\n\s+(\d+) bytes stack frame, (\d+) bytes "
               r"spill stores[^\n]*\n[^\n]*Used (\d+) registers(?:.*?(\d+) bytes smem)?")
    for mangled, stack, spills, registers, fixed in re.findall(pattern, log):
        counts = census(code[".text." + mangled], arch)
        kernels.append(Kernel(short_name(mangled), arch, int(registers),
                              int(fixed or 0) + shared.get(mangled, 0), int(stack),
                              int(spills), counts))
    return kernels, complaints, cpu


COLUMNS = ("HMMA", "IMMA", "IDP", "LDSM", "LDGSTS", "LDG.128", "LD.128")


def row(kernel):
    counts = " | ".join(str(kernel.counts[c]) for c in COLUMNS)
    return f"| {kernel.name} | {kernel.arch} | {kernel.registers} | {kernel.shared} | {kernel.spills} | {kernel.stack} | {counts} |"


def write_table(kernels):
    lines = ["# CUDA kernels as compiled", "",
             "Written by `tests/cuda/compile.py --write` with nvcc 13.0; the test compiles them again and",
             "compares. Counts are instructions in the code, not executed ones. No kernel may spill or have a",
             "stack. LD is a load by a generic address. Shared memory is dynamic, `sizeof` each kernel's `Shared` struct.", "",
             "| kernel | arch | registers | shared bytes | spills | stack | " + " | ".join(COLUMNS) + " |",
             "|---" * (6 + len(COLUMNS)) + "|"]
    TABLE.write_text("\n".join(lines + [row(k) for k in kernels]) + "\n")


def compare(kernels):
    """What differs from the table: instructions exactly, registers as an upper limit."""
    table = {}
    for line in TABLE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 6 + len(COLUMNS) and cells[2].isdigit():
            table[cells[0], cells[1]] = [int(cell) for cell in cells[2:]]
    for kernel in kernels:
        wanted = table.pop((kernel.name, kernel.arch), None)
        got = [kernel.registers, kernel.shared, kernel.spills, kernel.stack, *(kernel.counts[c] for c in COLUMNS)]
        if wanted is None:
            yield f"{kernel.name} {kernel.arch}: not in {TABLE.name}"
        elif got[0] > wanted[0] or got[1:] != wanted[1:]:
            yield f"{kernel.name} {kernel.arch}: {got}, expected {wanted}"
    for name, arch in table:
        yield f"{name} {arch}: in {TABLE.name}, but not compiled"


def ceil_of(x, step):
    return -(-x // step)


def designed(kernel):
    """(counts that the design gives, counts that it gives at least). A tile, or a block of 64 clusters, is in
    the code once; loops over rows are unrolled as ptxas likes."""
    name, _, arguments = kernel.name.partition(" ")
    arguments = arguments.split(", ")
    dims = [int(a) for a in arguments if a.isdigit()]
    head_dim = (dims[0] or 256) if dims else 0  # 0: for any two dims, as large as the largest
    lane_chunks = ceil_of(head_dim, 128)  # 16 lanes share a row
    exact = dict.fromkeys(("HMMA", "IMMA", "IDP", "LDSM"), 0)
    least = {}
    if name in ("attend", "decode"):  # K by Q and V by P over 16 rows, which come by cp.async
        exact["HMMA"] = exact["LDSM"] = 2 * head_dim // 16
        least["LDGSTS"] = 1
    if name in ("assign", "cluster_segment"):
        # 16 keys by 8 clusters by 16 channels, head_dim rounded up to 32; two such tiles share a centroid. A lane
        # keeps its keys: a load a product.
        exact["HMMA"] = ceil_of(head_dim, 32) * 2 * (2 if head_dim <= 128 else 1)
        if name == "assign":
            exact["LDG.128"] = exact["HMMA"]
            least["LDGSTS"] = 1
        else:
            least["LDG.128"] = exact["HMMA"] + 2 * lane_chunks  # starts, sums
    if name == "mean":
        least["LDG.128"] = 2 * lane_chunks
    if name == "summarise":  # sums of keys and of values, squares
        least["LDG.128"] = 3 * lane_chunks
    if name == "recall_quads":  # two quads, or halves of those of head_dim 256, a warp
        exact["LDG.128"] = 2 * ceil_of(min(head_dim, 128), 32)
    if name in ("append_rows", "store_segment"):
        least["LDG.128"] = 1
    if name == "score_clusters" and arguments[0] == "int8":
        least["LDGSTS"] = 1
        columns = dims[1]
        if arguments[3] == "mma":  # four tiles of 16 clusters by 32 elements, head_dim rounded up to 64
            exact["IMMA"] = 4 * 2 * ceil_of(head_dim, 64) * columns
        else:  # 16 elements of 8 clusters by two planes; the loop is not unrolled
            exact["IDP"] = 4 * 8 * 2 * columns
    return exact, least


def against_design(kernel):
    """What the design says of a kernel's code and is not so."""
    exact, least = designed(kernel)
    counts = kernel.counts
    for what, wanted in exact.items():
        if counts[what] != wanted:
            yield f"{counts[what]} {what}, {wanted} by design"
    for what, wanted in least.items():
        if counts[what] < wanted:
            yield f"{counts[what]} {what}, at least {wanted} by design"
    if counts["narrow copies"]:
        yield f"{counts['narrow copies']} cp.async of less than 16 bytes"


def main():
    nvcc, work = sys.argv[1], pathlib.Path(sys.argv[2])
    if not os.access(nvcc, os.X_OK):
        print("no nvcc")
        return 77
    work.mkdir(parents=True, exist_ok=True)
    jobs = [(file, arch) for file in sorted(ROOT.glob("kernels/*/cuda/*.cu")) for arch in ARCHITECTURES]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda job: compile_one(nvcc, work, *job), jobs))
    kernels = sorted((k for found, _, _ in results for k in found), key=lambda k: (k.name, k.arch))
    complaints = [c for _, found, _ in results for c in found]
    for kernel in kernels:
        if kernel.stack or kernel.spills or kernel.counts["STL"] or kernel.counts["LDL"]:
            complaints.append(f"{kernel.name} {kernel.arch}: stack {kernel.stack}, spills {kernel.spills}, "
                              f"{kernel.counts['LDL']} local loads")
        complaints += [f"{kernel.name} {kernel.arch}: {what}" for what in against_design(kernel)]
    if "--write" in sys.argv:
        write_table(kernels)
    complaints += compare(kernels)
    print("\n".join(complaints))
    slowest = max(seconds for _, _, seconds in results)
    print(f"{len(kernels)} kernels, {len(jobs)} compilations, the slowest {slowest:.0f} s of CPU, "
          f"{len(complaints)} complaints")
    return 1 if complaints or not kernels else 0


if __name__ == "__main__":
    sys.exit(main())
