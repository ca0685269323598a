"""All that we use of Ray and that Ray calls its own. It may change with any release, so pyproject.toml bounds the
version, and a test calls what is here.

Imported late, as ray itself: a run whose stages are all cached does not pay for it.
"""

from typing import Any

PACKAGING_LOGGERS = (  # they tell of every file that is sent
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)


def address_of_auto() -> str | None:
    """What the address `auto` stands for on this machine, as Ray finds it; None when it finds nothing, which Ray itself
    says."""
    from ray._private.services import get_ray_address_from_environment

    try:
        found = get_ray_address_from_environment("auto", None)
    except ConnectionError:
        return None
    return found if found and found not in ("auto", "local") else None


def read_authentication_again() -> None:
    """Let Ray's core take note of `RAY_AUTH_*`: it reads them once, while it is imported, and there is no other way to
    tell it that they have changed."""
    from ray import _raylet

    _raylet.Config.initialize("")  # type: ignore[attr-defined]
    _raylet.AuthenticationTokenLoader.instance().reset_cache()  # type: ignore[attr-defined]


def placement_group(name: str) -> Any:
    """The placement group with this id, made by another process: Ray gives out those with a name alone."""
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup

    return PlacementGroup(PlacementGroupID(bytes.fromhex(name)))


def has_process(actor: Any) -> bool:
    """Whether Ray has given an actor a process. Its public words call an actor that waits for room, and one that is
    being made, both pending."""
    from ray._private.state import actors

    address = actors(actor._actor_id.hex()).get("Address", {})
    return bool(address.get("Port"))


def train_callback() -> Any:
    """The class whose methods Ray Train calls in its controller: documented, but not among what `ray.train` names.

    Imports torch.
    """
    from ray.train.v2.api.callback import UserCallback

    return UserCallback
