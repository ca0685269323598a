"""What a plan says about tracking, as its copy in the folder of a run or a search has it."""

from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from raydistill.errors import PlanError
from raydistill.plan.schema import TrackingConfig
from raydistill.plan.written import MAX_STORED, yaml_values
from raydistill.runs.files import read_text
from raydistill.runs.run_files import PLAN


def read_settings(folder: Path) -> TrackingConfig | Literal["none"]:
    """The part `tracking` of the plan in `folder`; the defaults when there is none that can be read."""
    try:
        written = yaml_values(read_text(folder / PLAN), PLAN, MAX_STORED).get("tracking")
        return "none" if written == "none" else TrackingConfig.model_validate(written)
    except (PlanError, AttributeError, ValidationError):
        return TrackingConfig()
