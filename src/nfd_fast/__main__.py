"""``python -m nfd_fast`` is ``nfd-fast``."""

import sys

from nfd_fast.cli import main

sys.exit(main())
