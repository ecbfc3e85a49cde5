"""`python -m cipo_jax.cli`, the same as `cipo`."""

import sys

from cipo_jax.cli import main

sys.exit(main())
