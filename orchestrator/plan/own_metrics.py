"""Metrics of the user's own, which a plan names as `package.module:Class`."""

import re
from typing import Annotated, get_args

from pydantic import AfterValidator

from raydistill.metrics import Better, Form, Metric, find
from raydistill.plan.address import class_at
from raydistill.plan.config_errors import located_error
from raydistill.plan.fingerprint import digest
from raydistill.plan.sources import source_identity

NAME = re.compile(r"[a-z][a-z0-9_]{0,99}")


def metric_at(address: str) -> type[Metric]:
    """The metric at an address; `ValueError` says what is wrong with it."""
    found: type[Metric] = class_at(address, Metric, "metric")
    name = getattr(found, "name", None)
    if not isinstance(name, str) or NAME.fullmatch(name) is None:
        raise ValueError(
            f'metric `{address}` has no name: write `name = "my_metric"` in its body, in lower-case letters, digits'
            " and `_`"
        )
    if find(name) is not None:
        raise ValueError(f"metric `{address}` is called `{name}`, as one of ours is; give it another name")
    if found.compute is Metric.compute:
        raise ValueError(f"metric `{address}` has no `compute(self, answers)`, which returns its value")
    if found.better not in (*get_args(Better), None):
        raise ValueError(f'metric `{address}`: `better` is `"max"`, `"min"` or `None`, not `{found.better}`')
    if found.form not in get_args(Form):
        forms = ", ".join(f"`{form}`" for form in get_args(Form))
        raise ValueError(f"metric `{address}`: `form` is one of {forms}, not `{found.form}`")
    return found


def _checked(address: str) -> str:
    try:
        metric_at(address)
    except ValueError as error:
        raise located_error(str(error)) from None
    return address


MetricAddress = Annotated[str, AfterValidator(_checked)]


def module_of(address: str) -> str:
    """The module that a metric is in."""
    return address.partition(":")[0]


def code_of_metric(address: str) -> str:
    """A digest of the code that computes a metric: its module, and what that imports of the user's own."""
    return digest({"address": address, **source_identity((module_of(address),))})
