"""List the golden traces that differ, or write all anew: ``python -m tests.golden [--write]``."""

import sys
from argparse import ArgumentParser

from tests.golden import TRACES, read, trace, write

parser = ArgumentParser(prog="python -m tests.golden", description=__doc__)
parser.add_argument("--write", action="store_true", help="write all traces anew")
if parser.parse_args().write:
    for name in TRACES:
        write(name)
else:
    different = [name for name in TRACES if trace(name) != read(name)]
    sys.exit(f"different: {', '.join(different)}" if different else 0)
