"""Room that a killed controller of Ray Train left reserved: given back, and nobody else's."""

import threading
import time
from typing import Any

import pytest


@pytest.mark.ray
def test_the_room_of_a_killed_controller_is_given_back_and_that_of_a_living_group_is_not(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray.util.placement_group import PlacementGroup, placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    from raydistill.execution.ray_backend import reservations

    monkeypatch.setattr(reservations, "SETTLE_SECONDS", 3.0)

    @ray.remote(num_cpus=0)
    class Controller:
        def reserve(self) -> PlacementGroup:
            self.group = placement_group([{"CPU": 1}])
            ray.get(self.group.ready())
            return self.group

    @ray.remote(num_cpus=1)
    class Worker:
        def ping(self) -> None: ...

    def start_in(group: PlacementGroup) -> Any:
        place = PlacementGroupSchedulingStrategy(placement_group=group)
        return Worker.options(scheduling_strategy=place).remote()

    def state_of(group: PlacementGroup) -> str:
        table: dict[str, Any] = ray.util.placement_group_table(group)
        return str(table["state"])

    dead, living = Controller.remote(), Controller.remote()
    abandoned, used = ray.get([dead.reserve.remote(), living.reserve.remote()])
    late = placement_group([{"CPU": 1}])
    ray.get(late.ready())
    workers = [start_in(used)]
    ray.get(workers[0].ping.remote())
    ray.kill(dead)

    soon = threading.Timer(1.0, lambda: workers.append(start_in(late)))  # its room was given a moment ago
    soon.start()
    reservations.free_abandoned()
    soon.join()
    assert state_of(abandoned) == "REMOVED"
    assert state_of(used) == state_of(late) == "CREATED"
    for worker in (*workers, living):
        ray.kill(worker)
    for group in (used, late):
        ray.util.remove_placement_group(group)
    started = time.monotonic()
    reservations.free_abandoned()
    assert time.monotonic() - started < 1.5  # nothing is waited for where nothing is reserved
