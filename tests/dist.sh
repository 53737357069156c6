#!/usr/bin/env bash
# Build what would be published: a source distribution, a wheel from that, and an environment with that wheel in it, in
# which `bitnet doctor` runs, and `bitnet generate` with the model of the wheel. Then install another distribution
# `bitnet` over it, and take that away again.
# Usage, after the README's test command: tests/dist.sh
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$PWD/.venv/bin/python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

backend="import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
"$python" -c "$backend" "$work" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
# Without isolation: setuptools and Cython are those of the environment, and nothing is fetched.
"$python" -m pip wheel -q --no-deps --no-build-isolation --no-cache-dir -w "$work" "$work"/*.tar.gz
"$python" tests/dist.py "$work"

"$python" -m venv "$work/venv"
# What bitnet-runtime requires comes from the environment of the tests, whose own bitnet is found later.
"$work/venv/bin/python" - "$("$python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')" <<'EOP'
import pathlib, sys, sysconfig
pathlib.Path(sysconfig.get_path("platlib"), "zz_requirements.pth").write_text(sys.argv[1] + "\n")
EOP
cd "$work" # where there is no folder `bitnet`
pip() { "$work/venv/bin/python" -m pip -q --disable-pip-version-check --no-input "$@"; }
doctor() { "$work/venv/bin/bitnet" doctor --no-measure; }
refused() { # the words that the output of `bitnet doctor` must have
    if doctor >doctor.txt 2>&1 || ! grep -q "$1" doctor.txt; then
        echo "dist.sh: bitnet doctor was to fail, and to say: $1" && cat doctor.txt && exit 1
    fi
}

pip install --no-deps --no-index bitnet_runtime-*.whl
doctor
# The model in the wheel, without a network where the system can take it away.
offline=$(unshare -rn true 2>/dev/null && echo "unshare -rn" || true)
$offline "$work/venv/bin/bitnet" generate "Once upon a time" --max-new-tokens 12 --quiet >story.txt
grep -q "^, there was" story.txt || { echo "dist.sh: no story, but:" && cat story.txt && exit 1; }
pip install --no-deps --no-index foreign/bitnet-*.whl
refused "has taken the place of the package 'bitnet'"
pip uninstall -y bitnet
refused "files of 'bitnet-runtime' are missing"
pip install --no-deps --no-index --force-reinstall bitnet_runtime-*.whl
doctor >doctor.txt
echo "dist.sh: the source distribution builds, its wheel works, and another distribution 'bitnet' is told"
