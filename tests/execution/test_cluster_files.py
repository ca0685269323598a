"""The files of docs/kubernetes.md, as far as they can be checked without a cloud."""

import json
import re
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

PAGE = Path(__file__).parents[2] / "docs" / "kubernetes.md"


@pytest.fixture(scope="module")
def files() -> list[dict[str, Any]]:
    """The page's YAML in its order: a RayCluster, and a file of the cluster launcher."""
    blocks = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [yaml.safe_load(block) for block in blocks]


def test_the_launchers_file_is_what_rays_schema_wants(files: list[dict[str, Any]]) -> None:
    found = find_spec("ray")
    assert found is not None
    assert found.submodule_search_locations is not None
    schema = Path(found.submodule_search_locations[0]) / "autoscaler" / "ray-schema.json"
    launcher = files[1]
    jsonschema.validate(launcher, json.loads(schema.read_text()))
    types = launcher["available_node_types"]
    assert launcher["head_node_type"] in types
    assert sum(kind.get("max_workers", 0) for kind in types.values()) <= launcher["max_workers"]
    assert all(kind.get("min_workers", 0) == kind.get("max_workers", 0) for kind in types.values())


def test_a_ray_cluster_for_kuberay_hangs_together(files: list[dict[str, Any]]) -> None:
    cluster = files[0]
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    spec = cluster["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["rayVersion"] == version("ray")
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values()), (
            "Kubernetes wants texts"
        )
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes
            assert container["resources"]["requests"] == container["resources"]["limits"]
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
