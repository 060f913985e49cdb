"""What runs a graph: ONNX Runtime (`ort`) or OpenVINO (`openvino`), behind one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Session(Protocol):
    """A graph ready to run. Several threads may call."""

    def run(self, feed: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The outputs (n, width) for these inputs, beside each other. Raises EngineError when the runtime fails."""

    def outputs(self, feed: Mapping[str, NDArray[Any]], names: Sequence[str]) -> list[NDArray[np.float32]]:
        """The outputs of these names. Raises EngineError when the runtime fails."""

    def close(self) -> None:
        """Free the graph and its memory."""
