"""Back ends that note which stages start together."""

from typing import Any

from raydistill.execution.request import StageRequest
from raydistill.plan.resources import ResourcesConfig


class Watched:
    """Before a back end among the bases. Its device counts as a GPU, where replicas are stacked by themselves."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.started: list[list[str]] = []

    def has_gpu_for(self, resources: ResourcesConfig) -> bool:
        return True

    def try_start(self, request: StageRequest, *others: StageRequest) -> bool:
        is_started: bool = super().try_start(request, *others)  # type: ignore[misc]
        if is_started:
            self.started.append([each.name for each in (request, *others)])
        return is_started
