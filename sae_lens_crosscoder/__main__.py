"""`python -m sae_lens_crosscoder` is the command line tool."""

import sys

from sae_lens_crosscoder.cli import main

sys.exit(main())
