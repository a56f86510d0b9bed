"""`python -m warpup`: the command `warpup`, for launchers that take a module."""

import sys

from warpup.cli import main

sys.exit(main())
