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


def node_types() -> set[str]:
    """What Ray's autoscaler calls the types of the nodes that are there. Every Ray cluster has a process that writes
    such a list; of fixed machines it makes up a type `node_<id>` for each, or names none."""
    import json

    import ray
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.autoscaler.v2.sdk import get_cluster_status
    from ray.autoscaler.v2.utils import is_autoscaler_v2
    from ray.experimental.internal_kv import _internal_kv_get

    if is_autoscaler_v2():
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        nodes = [*status.active_nodes, *status.idle_nodes]
        return {node.ray_node_type_name for node in nodes}
    written = _internal_kv_get(DEBUG_AUTOSCALING_STATUS)
    report = json.loads(written).get("autoscaler_report") if written else None
    return set(((report or {}).get("node_type_mapping") or {}).values())


def draining_nodes() -> set[str]:
    """The ids of nodes that will go soon, and have said so: taken away by a cloud, shut down, or not needed."""
    from ray._private.state import state

    return set(state.get_draining_nodes())


def train_callback() -> Any:
    """The class whose methods Ray Train calls in its controller: documented, but not among what `ray.train` names.

    Imports torch.
    """
    from ray.train.v2.api.callback import UserCallback

    return UserCallback
