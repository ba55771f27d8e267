"""Several commands of tightframe, one after the other, in the processes that a launcher has started."""

import json
import sys
from pathlib import Path

from tightframe.cli import main

sys.exit(max(main(arguments) for arguments in json.loads(Path(sys.argv[1]).read_text())))
