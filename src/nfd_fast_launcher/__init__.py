"""The ``nfd-fast`` command: ``nfd_fast.cli``, with a word instead of a traceback if it won't load.

Outside the package, since what can fail is importing it: a wrong ``NFD_FAST_ISA``, a library that
is missing.
"""

import sys


def main() -> int:
    """Run the command line and return its exit code: that of ``nfd_fast.cli``, or 2."""
    try:
        from nfd_fast.cli import main as command
    except ImportError as error:
        print("nfd-fast: error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nnfd-fast: interrupted", file=sys.stderr)
        return 130
    return command()
