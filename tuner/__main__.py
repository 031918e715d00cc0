"""`python -m tuner VERB`."""

import sys

from tuner import redaction
from tuner.cli import main

redaction.install()
sys.exit(main())
