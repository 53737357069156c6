"""``python -m bitnet`` is ``bitnet``."""

import sys

from bitnet.cli import main

sys.exit(main())
