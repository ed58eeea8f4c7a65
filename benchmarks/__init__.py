"""Side by side with the peers, in one process: `make bench`."""

import os

# Else torch's idle threads spin, and take the time of others. Read when torch starts.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
