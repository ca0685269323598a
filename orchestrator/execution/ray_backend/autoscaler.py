"""A Ray cluster that grows when it is asked to: who can be asked, what for, and that it is given back.

We submit nothing for which there is no room, so an autoscaler would never hear of what waits. It is told: room for what
runs and for what could start, as Ray wants it, the whole and not the difference. Ray keeps one such request for a whole
Ray cluster, of whoever asked last, until somebody takes it back.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence

from raydistill.execution.ray_backend.private import node_types
from raydistill.execution.ray_backend.resources import Limit, Resources

REMIND_SECONDS = 300.0  # a machine of a cloud is there within that time, or something is wrong
MOST_BUNDLES = (
    1000  # in one request: more machines than an autoscaler starts in the time that it takes to ask again
)

log = logging.getLogger(__name__)

Bundle = dict[str, float]
Labels = dict[str, str]


class Growth:
    """What we have asked of the autoscaler. `ask` takes bundles of resources, and the labels that go with each; nothing
    is asked where there is none."""

    def __init__(
        self, ask: Callable[[list[Bundle], list[Labels]], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ask, self._clock = ask, clock
        self._asked: list[tuple[Bundle, Labels]] = []
        self._since = self._reminded = 0.0

    def want(
        self, running: Iterable[Resources], waiting: Sequence[tuple[str, Resources]], limit: Limit
    ) -> None:
        """Ask for room for the workers that run, and for those of stages that wait, as far as the limit allows; where
        none waits, for nothing: what is in use is kept anyway."""
        bundles: list[tuple[Bundle, Labels]] = []
        held = Resources()
        for worker in [*running, *(worker for _, worker in waiting)] if waiting else ():
            if limit.of(held + worker) == held + worker and len(bundles) < MOST_BUNDLES:
                held += worker
                bundles.append((worker.to_ray(), worker.labels))
        if bundles != self._asked:
            self._ask([bundle for bundle, _ in bundles], [labels for _, labels in bundles])
            if not self._asked:
                self._since = self._reminded = self._clock()
            self._asked = bundles
        self._remind(waiting)

    def give_back(self) -> None:
        """Take the request back, if there is one: machines with nothing to do may go."""
        if self._asked:
            self._ask([], [])
            self._asked = []

    def _remind(self, waiting: Sequence[tuple[str, Resources]]) -> None:
        now = self._clock()
        if waiting and self._asked and now - self._reminded >= REMIND_SECONDS:
            self._reminded = now
            name, worker = waiting[0]
            log.warning(
                "`%s` has waited %.0f min for room; the autoscaler was asked for %s: look at `ray status` on the head",
                name,
                (now - self._since) / 60,
                worker,
            )


def request(bundles: list[Bundle], labels: list[Labels]) -> None:
    """Ask the autoscaler for room for all these bundles at once, each on a machine with its labels; for none, take it
    back."""
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=bundles, bundle_label_selectors=labels or None)


def is_there() -> bool:
    """Whether the Ray cluster that this process has joined has an autoscaler."""
    return starts_machines(node_types())


def starts_machines(types: Iterable[str]) -> bool:
    """Whether nodes of these types are an autoscaler's: of fixed machines each has a type made up from its id."""
    return any(name and not name.startswith("node_") for name in types)
