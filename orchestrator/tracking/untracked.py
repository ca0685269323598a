"""A run that MLflow never hears of: `tracking: none` in its plan."""

from pathlib import Path
from typing import Any


class Untracked:
    """Has the words of a `Mirror`, and nothing to do. MLflow is not imported."""

    def has_sent(self, previous: Path) -> bool:
        """There is nothing to send."""
        return True

    def adopt(self, previous: Path) -> None:
        """Nothing to take over."""

    def check(self) -> None:
        """Nobody to ask."""

    def start(self) -> None:
        """Nothing to begin."""

    def hurry(self) -> None:
        """Nothing waits."""

    def finish(self, seconds: float = 0.0, rest: str = "next time") -> None:
        """Nothing is left."""

    def description(self) -> dict[str, Any]:
        """The entry `mlflow` of results.json."""
        return {}
