"""Types of NumPy arrays, named once for the whole house."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Double = NDArray[np.float64]
Mask = NDArray[np.bool_]
Rows = NDArray[np.int64]  # places in other arrays
Counts = NDArray[np.int64]
