"""Requests that a fuzzer makes of the server's own OpenAPI document: no answer may be 5xx but 503, or undocumented.

    pip install schemathesis && python tests/fuzz/fuzz_server.py --max-examples 200

Further arguments are those of ``schemathesis run``.
"""

import os
import re
import subprocess
import sys

CHECKS = "status_code_conformance,content_type_conformance,response_schema_conformance"


def main():
    serve = [sys.executable, "-m", "bitnet", "serve", "--port", "0", "--num-threads", "1", "--timeout", "1"]
    with subprocess.Popen(serve, stderr=subprocess.PIPE, text=True) as server:
        address = re.search(r"http://\S+", server.stderr.readline())[0]
        command = [os.path.join(os.path.dirname(sys.executable), "schemathesis"), "run", f"{address}/openapi.json"]
        code = subprocess.run([*command, "--checks", CHECKS, "--request-timeout", "60", *sys.argv[1:]]).returncode
        alive = server.poll() is None
        server.terminate()
        said = server.stderr.read()
    # An error that nobody expected is logged with a traceback.
    if not alive or "Traceback" in said:
        print(said, file=sys.stderr)
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
