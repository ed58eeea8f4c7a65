"""Numbers that the notebook printed for `my_net()` on `ones(4)`, to four decimals."""

import numpy as np

# The row of the input layer's gradient repeats: its four inputs are all 1.
_FIRST_ROW = np.array([-1.5650, -1.0272, -0.4034], np.float32)
_FIRST_ROW_CLIPPED = np.array([-0.0617, -0.0405, -0.0159], np.float32)

# What each parameter held in `.grad`: not one `backward()` but several, accumulated.
NOTEBOOK_GRADIENTS = {
    "1.weight": np.tile(_FIRST_ROW, (4, 1)),
    "1.bias": _FIRST_ROW,
    "1.fc.weight": np.array(
        [
            [-0.1358, -0.1905, -0.4474],
            [3.8544, 5.4059, 12.6960],
            [-0.0940, -0.1319, -0.3097],
        ],
        np.float32,
    ),
    "1.fc.bias": np.array([-0.1178, 3.3428, -0.0815], np.float32),
    "3.weight": np.array([[-11.6470, -13.3479, 6.3779]], np.float32),
    "3.bias": np.array([7.2874], np.float32),
}

# The same after clipping all of them together to a norm of 1.
NOTEBOOK_CLIPPED = {
    "1.weight": np.tile(_FIRST_ROW_CLIPPED, (4, 1)),
    "1.bias": _FIRST_ROW_CLIPPED,
    "1.fc.weight": np.array(
        [
            [-0.0054, -0.0075, -0.0176],
            [0.1520, 0.2132, 0.5008],
            [-0.0037, -0.0052, -0.0122],
        ],
        np.float32,
    ),
    "1.fc.bias": np.array([-0.0046, 0.1319, -0.0032], np.float32),
    "3.weight": np.array([[-0.4594, -0.5265, 0.2516]], np.float32),
    "3.bias": np.array([0.2874], np.float32),
}

# How far clipping the first may lie from the second: half a unit of the last decimal
# that is printed, and 1e-5 for the decimals that the gradients have lost. Those move
# a quotient by 5e-5 / 25.35, and by a share of 1.1e-5 through the norm.
NOTEBOOK_ATOL = 5e-5 + 1e-5
