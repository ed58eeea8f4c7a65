"""One thread for torch: the nets are tiny, and its idle threads spin.

With several test processes on few cores, the spinning costs ten times the tests.
"""

import torch

torch.set_num_threads(1)
