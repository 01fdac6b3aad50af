"""A session that tells how long its last run took, for the times of a call's stages."""

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.backends import Session


class Timed:
    """A session of one thread that keeps when it was last run, and until when, as time.perf_counter() in seconds."""

    def __init__(self, session: Session) -> None:
        self.provider: str = session.provider
        self.input_dtype: np.dtype[Any] = session.input_dtype
        self.begin = self.end = 0.0
        self._session = session

    def run(self, tensor: NDArray[Any]) -> list[NDArray[Any]]:
        """Run the session; errors as there."""
        self.begin = time.perf_counter()
        outputs = self._session.run(tensor)
        self.end = time.perf_counter()
        return outputs
