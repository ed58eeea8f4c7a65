"""What every test shares."""

import hypothesis
import torch

# On few cores torch's idle threads spin, and take the time of everything else.
torch.set_num_threads(1)

# The same examples on every run; no deadline, as the first call compiles.
hypothesis.settings.register_profile("jaxclip", derandomize=True, deadline=None)
hypothesis.settings.load_profile("jaxclip")
