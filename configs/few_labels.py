"""The task of configs/few_labels.yaml: the embedded digits, of which few have a label."""

from dataclasses import replace

import numpy as np
from pydantic import Field

from raydistill.tasks.labels import UNLABELLED
from raydistill.tasks.mnist import Mnist
from raydistill.tasks.task import Arrays


class FewLabels(Mnist):
    """4,000 digits to learn from, of which every so manieth has a label, and 1,000 to test with."""

    every: int = Field(default=10, ge=1)
    """1 of how many training digits has a label."""

    @property
    def unlabelled(self) -> int:
        return 4000 - -(-4000 // self.every)

    def read(self) -> dict[str, Arrays]:
        arrays = super().read()
        labels = arrays["train"].labels
        has_label = np.arange(len(labels)) % self.every == 0
        return arrays | {"train": replace(arrays["train"], labels=np.where(has_label, labels, UNLABELLED))}
