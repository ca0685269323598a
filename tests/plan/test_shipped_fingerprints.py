"""What users have trained with a shipped plan stays theirs: every node keeps the fingerprint that the table has.

Written anew, on purpose alone, by `python tests/plan/test_shipped_fingerprints.py`.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from raydistill.plan.load import written_out
from raydistill.plan.order import Node, order_stages
from raydistill.plan.schema import Plan
from raydistill.plan.stage import stage_of
from raydistill.plan.written import parse_source

ROOT = Path(__file__).parents[2]
TABLE = Path(__file__).with_suffix(".json")
PLANS = sorted((ROOT / "configs").rglob("*.yaml"))


def nodes_of(file: Path) -> Mapping[str, Node]:
    """Every node of a plan, whatever data lies on this machine."""
    plan = Plan.model_validate(written_out(parse_source(file.read_text(), str(file)).values, Plan))
    with pytest.MonkeyPatch.context() as patch:
        kind = type(plan.task)
        patch.setattr(kind, "identity", lambda task: {"name": task.name})
        patch.setattr(kind, "test_content", lambda task: "")
        try:
            plan.task.class_names  # noqa: B018
        except FileNotFoundError:  # that data is to be made first; the plan's name says of how many classes
            count = re.search(r"\d+", file.stem)
            names = tuple(f"class {label}" for label in range(int(count[0]) if count else 200))
            patch.setattr(kind, "class_names", property(lambda task: names))
        return order_stages(plan).nodes


def fingerprints(file: Path) -> dict[str, str]:
    return {name: node.fingerprint for name, node in nodes_of(file).items()}


def label(file: Path) -> str:
    return file.relative_to(ROOT / "configs").as_posix()


@pytest.mark.parametrize("file", PLANS, ids=label)
def test_every_node_of_a_shipped_plan_keeps_its_fingerprint(file: Path) -> None:
    assert fingerprints(file) == json.loads(TABLE.read_text())[label(file)]


@pytest.mark.parametrize("file", PLANS, ids=label)
def test_a_worker_reads_every_node_of_a_shipped_plan_as_it_was_sent(file: Path) -> None:
    for node in nodes_of(file).values():
        sent = json.loads(json.dumps(node.config.model_dump(mode="json")))
        assert stage_of(sent) == node.config, node.name


if __name__ == "__main__":
    table = {label(file): fingerprints(file) for file in PLANS}
    TABLE.write_text(json.dumps(table, indent=1) + "\n")
