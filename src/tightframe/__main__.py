"""``python -m tightframe`` is the ``tightframe`` command."""

import sys

from tightframe.cli import main

sys.exit(main())
