"""`python -m vae_fast.cli` is the command `vae-fast`."""

import sys

from .main import main

sys.exit(main())
