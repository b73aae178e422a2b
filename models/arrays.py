"""Types of NumPy arrays, named once for the whole house."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Double = NDArray[np.float64]
Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]
