"""Whether every node sees the storage root: each must find what the driver wrote there, and answer in kind."""

import logging
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from raydistill.errors import PlanError
from raydistill.execution.ray_backend.nodes import ClusterNode, ask_nodes, list_nodes
from raydistill.execution.ray_backend.probes import DRIVER, answer_bucket_probe, answer_probe, appears
from raydistill.runs.bucket import Bucket, is_url
from raydistill.runs.files import make_folder

WAY_OUT = (
    "name a folder that all nodes mount with `--runs`, or leave `--address` out to run on this machine alone"
)
WAY_TO_BUCKET = "give the nodes the library and the credentials that this machine has"

log = logging.getLogger(__name__)


class SharedStorage:
    """Remembers which nodes have been asked: those that join later are asked when they are first seen."""

    def __init__(self) -> None:
        self._asked: dict[str, set[str]] = {}
        self._blind: dict[str, set[str]] = {}

    def check(self, root: str) -> frozenset[str]:
        """Ids of the nodes that joined later and do not see the root: what runs there would be lost.

        `PlanError` when a node that is there from the start does not see it. One node costs nothing.
        """
        nodes = [node for node in list_nodes() if node.is_alive]
        asked, blind = self._asked.get(root, set()), self._blind.setdefault(root, set())
        new = [node for node in nodes if node.id not in asked and not node.is_own]
        # Noted before they answer: a node that never does is not asked again at every stage, a minute each time.
        self._asked[root] = asked | {node.id for node in nodes}
        for node, problem in storage_problems(root, new).items() if new else ():
            if not asked:
                way_out = WAY_TO_BUCKET if is_url(root) else WAY_OUT
                raise PlanError(f"{_explained(node, root, problem)}; {way_out}")
            log.warning("%s; nothing is run there", _explained(node, root, problem))
            blind.add(node.id)
        return frozenset(blind)


def storage_problems(root: str, nodes: Sequence[ClusterNode]) -> dict[ClusterNode, str]:
    """Those of the nodes that do not share the storage root with this process, and what each of them does instead."""
    return _bucket_problems(root, nodes) if is_url(root) else _folder_problems(root, nodes)


def _bucket_problems(url: str, nodes: Sequence[ClusterNode]) -> dict[ClusterNode, str]:
    bucket, content = Bucket(url), uuid.uuid4().hex
    folder = f".probe-{content}"
    bucket.write(f"{folder}/{DRIVER}", content.encode())
    try:
        answers = ask_nodes(
            nodes, answer_bucket_probe, lambda node: (url, folder, f"node-{node.id}", content)
        )
        problems = {answer.node: answer.error or answer.value for answer in answers}
        return {node: problem for node, problem in problems.items() if problem is not None}
    finally:
        bucket.delete(bucket.listing(folder))


def _folder_problems(root: str, nodes: Sequence[ClusterNode]) -> dict[ClusterNode, str]:
    content = uuid.uuid4().hex
    with _probe_folder(Path(root), content) as folder:
        answers = ask_nodes(
            nodes, answer_probe, lambda node: (str(root), str(folder), f"node-{node.id}", content)
        )
        found = {}
        for answer in answers:
            node, problem = answer.node, answer.error or answer.value
            if problem is None and not appears(folder / f"node-{node.id}", content):
                problem = "writes files there that this machine does not see"
            if problem is not None:
                found[node] = problem
    return found


@contextmanager
def _probe_folder(root: Path, content: str) -> Iterator[Path]:
    folder = make_folder(root / f".probe-{content}")
    try:
        (folder / DRIVER).write_text(content, encoding="utf-8")
        yield folder
    except OSError as error:
        raise PlanError(f"the storage root `{root}` cannot be used: {error.strerror or error}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _explained(node: ClusterNode, root: str, problem: str) -> str:
    return f"node {node} of the Ray cluster does not share the storage root `{root}`: it {problem}"
