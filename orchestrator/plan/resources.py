"""What each worker of a stage needs: cores, GPUs, memory, time."""

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from raydistill.plan.config import Config, Duration, Integer, NonNegative, Positive, seconds_of, text_like
from raydistill.plan.config_errors import located_error

Memory = Annotated[
    str, text_like(r"[0-9]+(\.[0-9]+)?(MiB|GiB)", "a number with its unit, such as `4GiB` or `500MiB`")
]

Accelerator = Annotated[
    str, text_like(r"[A-Za-z0-9_.-]+", "the name that Ray has for a type of GPU, such as `H100`")
]
LABEL = r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?"
LABEL_NAME = re.compile(rf"([A-Za-z0-9.-]+/)?{LABEL}")
LabelValue = Annotated[str, text_like(LABEL, "the value of a label, such as `eu`")]
OWN_KEYS = {"cpu": "cpus", "gpu": "gpus", "memory": "memory"}


class ResourcesConfig(Config):
    """What each worker of a stage needs. Never part of a stage's identity.

    `gpus` may be a fraction, so that several small models share one; left out, a stage takes one GPU where the
    Ray cluster has any. `auto` is a fraction that is measured: a training has a GPU to itself until another like it
    has shown how much of one it needs, in memory and in time; then up to eight share one.

    `workers` above one train data-parallel under Ray Train, or predict shard by shard: then as many take part as there
    is room for, more as there is more, and any number writes the same bytes.

    `accelerator` wants GPUs of one type, in Ray's words (`H100`, `A100`, `L4`); `custom` are resources that somebody
    gave to nodes, `ray start --resources '{"licence": 2}'`: `custom: {licence: 1}`. `labels` are those that a node must
    have for it to run there: `labels: {region: eu}`, of nodes from `ray start --labels region=eu`. None of them matters
    with `--local`.

    A stage whose process died, or whose machine is gone, begins again from its last checkpoint, as often as `retries`
    says. One that fails by its own error is not tried again: it would fail again.

    A stage that runs longer than its `timeout` (without waiting for room; each attempt anew) fails: what each of its
    threads was doing then is in its record and in `stacks-rank0.txt` of its folder, its last checkpoint stays. One that
    hangs is ended. With `--local`, and in trials of a search on one worker, it is the driver that hangs: nothing can
    end it but you.
    """

    workers: Annotated[Integer, Field(ge=1)] = 1
    """Processes that train, or predict, side by side."""
    cpus: Positive = 1.0
    """CPU cores per worker, and its threads."""
    gpus: NonNegative | Literal["auto"] | None = None
    """GPUs per worker, or a fraction of one; one, where there are any, when left out; `auto`: as its like needed."""
    memory: Memory | None = Field(None, description="such as 4GiB")
    timeout: Duration | None = Field(None, description="such as 90s, 30m or 2h")

    accelerator: Accelerator | None = Field(None, description="such as H100")
    custom: dict[str, Positive] = Field(default_factory=dict)
    """Named resources of the Ray cluster's own, per worker."""
    labels: dict[str, LabelValue] = Field(default_factory=dict)
    """Labels of the nodes on which it may run, with their values."""
    retries: Annotated[Integer, Field(ge=0)] = 3
    """How often it begins again when a process of it died."""

    @model_validator(mode="after")
    def _sensible(self) -> "ResourcesConfig":
        if (gpus := self.given_gpus) is not None and gpus > 1 and gpus != int(gpus):
            raise located_error(
                f"{gpus:g} GPUs: only a single GPU can be shared; write a whole number", "gpus"
            )
        if self.accelerator is not None and self.gpus == 0:
            raise located_error(
                f"no GPU is asked for: leave `gpus: 0` or `{self.accelerator}` out", "accelerator"
            )
        for name in self.custom:
            _check_custom(name)
        for name in self.labels:
            if LABEL_NAME.fullmatch(name) is None:
                raise located_error(
                    "not the name of a label, such as `region` or `example.org/rack`", "labels", name
                )
        if self.timeout_seconds == 0:
            raise located_error("no stage ends in no time; leave `timeout` out for none", "timeout")
        return self

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    @property
    def given_gpus(self) -> float | None:
        """GPUs per worker, as somebody said; None: one, where there are any."""
        return None if self.gpus == "auto" else self.gpus

    @property
    def timeout_seconds(self) -> float | None:
        """Seconds for an attempt; None: as long as it takes."""
        return None if self.timeout is None else seconds_of(self.timeout)

    @property
    def memory_bytes(self) -> int:
        """Bytes per worker; 0 when nothing was asked for."""
        if self.memory is None:
            return 0
        unit = 2**20 if self.memory.endswith("MiB") else 2**30
        return int(float(self.memory[:-3]) * unit)


def _check_custom(name: str) -> None:
    """What has a key of its own is no custom resource: Ray refuses it there."""
    key = "accelerator" if name.startswith("accelerator_type:") else OWN_KEYS.get(name.lower())
    if key is not None:
        raise located_error(f"it has a key of its own: write `resources: {{{key}: …}}`", "custom", name)
    if not name.strip() or name.startswith("node:"):
        raise located_error("not the name of a custom resource", "custom", name)
