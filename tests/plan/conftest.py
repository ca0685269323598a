"""Plans as people write them, and what the plan layer makes of them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from raydistill.errors import PlanError
from raydistill.plan.load import check_plan, read_source
from raydistill.plan.order import Graph, order_stages


@pytest.fixture
def write_plan(tmp_path: Path) -> Callable[[str | bytes], Path]:
    """Write a plan to `plan.yaml`; returns its path."""

    def write(text: str | bytes) -> Path:
        file = tmp_path / "plan.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    return write


@pytest.fixture
def graph_of(write_plan: Callable[[str | bytes], Path]) -> Callable[..., Graph]:
    """The graph of a plan's text, after overrides."""

    def order(text: str, *overrides: str) -> Graph:
        source = read_source(write_plan(text), overrides)
        return order_stages(check_plan(source))

    return order


@pytest.fixture
def refusal(graph_of: Callable[..., Graph], tmp_path: Path) -> Callable[..., str]:
    """The message that refuses a plan, without the folder of its file."""

    def refuse(text: str | bytes, *overrides: str) -> str:
        with pytest.raises(PlanError) as caught:
            graph_of(text, *overrides)
        return caught.value.message.replace(f"{tmp_path}/", "")

    return refuse
