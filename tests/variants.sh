#!/usr/bin/env bash
# Build the core in another way and run its tests on it. Usage, after the README's test command:
#
#   tests/variants.sh debug       bounds checks in Cython, assertions in the kernels (BITNET_DEBUG=1)
#   tests/variants.sh sanitize    under the address and undefined-behaviour sanitizers of gcc
#   tests/variants.sh freethreaded   for the Python of PYTHON, which has no lock: see freethreaded.sh
#
# More arguments go to pytest; the default is everything that touches compiled code.
set -euo pipefail
cd "$(dirname "$0")/.."
variant=${1:?debug, sanitize or freethreaded}
shift
python=${PYTHON:-$PWD/.venv/bin/python}
lib=$PWD/build/$variant/lib

case $variant in
debug) export BITNET_DEBUG=1 ;;
sanitize) export BITNET_SANITIZE=address,undefined ;;
freethreaded) ;;
*) echo "variants.sh: '$variant' is none of debug, sanitize, freethreaded" >&2; exit 2 ;;
esac

"$python" setup.py -q build --build-base "build/$variant" --build-lib "$lib" --build-temp "build/$variant/temp"

if [ "$variant" = sanitize ]; then
    # Python itself is not instrumented: the runtime must come first, and what the interpreter never frees is no leak.
    LD_PRELOAD=$(gcc -print-file-name=libasan.so) && export LD_PRELOAD
    export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 PYTHONMALLOC=malloc
fi

# The working directory's bitnet must not hide the one built here, neither now nor in the processes that tests start.
export PYTHONPATH=$lib PYTHONSAFEPATH=1
"$python" -c "import bitnet._core.matmul as m; assert m.__file__.startswith('$lib'), m.__file__"
exec "$python" -m pytest -q -p no:cacheprovider "${@:-tests/core}"
