import numpy as np
import pytest

from jaxclip.demo._differences import distance, relative_difference


def test_differences_are_relative_to_the_second():
    a, b = np.array([1.0, 0.0, 3.0], np.float32), np.array([2.0, 0.0, 3.0], np.float32)
    np.testing.assert_array_equal(relative_difference(a, b), [0.5, 0.0, 0.0])
    assert distance(a, b) == pytest.approx(1 / np.sqrt(13), rel=1e-15)
    assert distance(0 * a, 0 * b) == 0
