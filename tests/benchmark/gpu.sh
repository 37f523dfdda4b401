#!/usr/bin/env bash
# What a GPU makes of this checkout, in at most six minutes: tests/benchmark/gpu.sh [PACKAGES.tar.xz]
#
# Needs Python 3.12 with torch, transformers and accelerate. What else is missing may come as an archive of packages, which
# is unpacked and put on PYTHONPATH. Writes into $OUT (default: gpu-results): benchmark.json, the iteration of Stable Diffusion
# 2.1's architecture; tests.txt, the tests that need CUDA (where pytest is); object.json, an object of the miniature, its
# seconds and scores. A part that fails leaves a .log and the others go on; the exit status then is 1. TRIAL=1 makes every
# part tiny, for a CPU.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=$(realpath -m "${OUT:-gpu-results}")
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=${PYTHON:-python3}
failed=0

if [ $# -gt 0 ]; then
    mkdir "$work/site"
    tar -xf "$1" -C "$work/site" || exit 2
    export PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}"
fi
if ! "$python" -c "import imageio_ffmpeg" 2>"$work/import"; then # it is large: frames are then counted, not encoded
    mkdir "$work/stand-in"
    cat >"$work/stand-in/imageio_ffmpeg.py" <<'PYTHON'
"""Stands in for imageio-ffmpeg: counts the frames, and writes their number instead of a film."""

__version__ = "0"


def write_frames(path, size, fps=1, **options):
    count = 0
    try:
        while True:
            yield
            count += 1
    finally:
        with open(path, "w") as file:
            file.write(str(count))


def count_frames_and_secs(path):
    with open(path) as file:
        return int(file.read()), 0.0
PYTHON
    export PYTHONPATH="$work/stand-in${PYTHONPATH:+:$PYTHONPATH}"
fi

run() { # NAME SECONDS COMMAND…: stdout to $out/NAME, stderr to its log, which is kept if the command fails
    local name=$1 limit=$2
    shift 2
    if timeout "$limit" "$@" >"$out/$name" 2>"$out/$name.log"; then
        rm "$out/$name.log"
    else
        failed=1
        echo "$name failed or took more than $limit s:"
        tail -5 "$out/$name.log"
    fi
}

benchmark=(--random-weights --resolution 64 512 --iterations 12)
object=()
if [ -n "${TRIAL:-}" ]; then
    benchmark=(--resolution 16 --iterations 2)
    object=(--iterations 2)
fi
run benchmark.json 130 "$python" -m redream benchmark "${benchmark[@]}" --json

if "$python" -c "import pytest" 2>"$work/import"; then # without the plug-ins that pyproject.toml asks for
    run tests.txt 85 "$python" -m pytest -m gpu -q -o addopts=--import-mode=importlib
fi

start=$EPOCHREALTIME
run object.txt 140 "$python" -m redream generate "a purple owl" --seed 7 --out "$work/owl" "${object[@]}"
end=$EPOCHREALTIME
"$python" - "$work/owl" "$start" "$end" >"$out/object.json" <<'PYTHON'
import json, pathlib, sys

run = pathlib.Path(sys.argv[1])
parts = {name: run / f"{name}.json" for name in ("scores", "record")}
values = {name: json.loads(file.read_text()) if file.is_file() else None for name, file in parts.items()}
print(json.dumps({"seconds": float(sys.argv[3]) - float(sys.argv[2]), **values}, indent=2))
PYTHON
ls "$out"
exit $failed
