#!/usr/bin/env bash
# Run what threads share on a Python without a global interpreter lock. Usage, after the README's test command:
#
#   tests/freethreaded.sh                      with the Python named by FREETHREADED_PYTHON, else one that is built first
#
# One is built, in about five minutes on two cores, from the sources that Debian 13 has of Python 3.13 (Debian's packages
# are built with the lock), and kept in build/freethreaded: it needs apt-get with a signed archive of Debian, a compiler,
# libssl-dev, libffi-dev and zlib1g-dev. Arguments go to pytest; the default is what threads share.
#
# tokenizers, llguidance and safetensors have no wheels for a 3.13 without the lock: tests that import them are left out.
# Once in six runs a child forked beside running Python threads hung there (test_a_child_of_a_fork_goes_on_by_itself).
set -euo pipefail
cd "$(dirname "$0")/.."
work=$PWD/build/freethreaded
mkdir -p "$work"

build_python() {
    local key=/usr/share/keyrings/debian-archive-keyring.gpg
    if [ ! -e "$key" ] || ! command -v apt-get >/dev/null; then
        echo "freethreaded.sh: no Debian to build a Python from; name one in FREETHREADED_PYTHON" >&2
        exit 2
    fi
    mkdir -p "$work/apt/lists/partial" "$work/apt/cache/archives/partial"
    echo "deb-src [signed-by=$key] http://deb.debian.org/debian trixie main" >"$work/apt/sources.list"
    cat >"$work/apt/apt.conf" <<-EOF
	Dir::State::lists "$work/apt/lists";
	Dir::Cache "$work/apt/cache";
	Dir::Etc::sourcelist "$work/apt/sources.list";
	Dir::Etc::sourceparts "-";
	APT::Sandbox::User "root";
	EOF
    (
        export APT_CONFIG=$work/apt/apt.conf
        cd "$work/apt"
        apt-get update -qq
        apt-get source -qq --download-only python3.13 # its signature is checked
        tar xf python3.13_*.orig.tar.xz
        cd Python-3.13*/
        ./configure -q --disable-gil --prefix="$work/python"
        make -s -j"$(nproc)"
        make -s install
    ) >"$work/build.log" 2>&1 || { tail -20 "$work/build.log" >&2; exit 1; }
    rm -rf "$work/apt"
}

python=${FREETHREADED_PYTHON:-$work/python/bin/python3.13t}
[ -x "$(command -v "$python")" ] || build_python
[ -x "$work/venv/bin/python" ] || "$python" -m venv "$work/venv"
# Only wheels: NumPy's newest may have none for 3.13, and would be compiled.
"$work/venv/bin/python" -m pip install -q --only-binary :all: "numpy>=1.26" "cython>=3.1" "setuptools>=77" pytest jinja2 rich hypothesis

export PYTHON=$work/venv/bin/python PYTHON_GIL=0
"$PYTHON" -c "import sys; assert not sys._is_gil_enabled(), 'this Python has the lock'"
[ $# -gt 0 ] || set -- tests/core tests/test_{many_threads,scheduler,schedules,async,rewind,kv_cache,kv_state}.py \
    -k "not test_each_of_32 and not leaves_out"
exec tests/variants.sh freethreaded "$@"
