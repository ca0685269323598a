"""Finished models that are laid side by side: what this stage can be told."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from raydistill.plan.config import Integer, ModelRef
from raydistill.plan.stage import StageConfig

if TYPE_CHECKING:
    from raydistill.plan.order import Site

Sample = Annotated[Integer, Field(ge=-(2**63), lt=2**63)]


class CompareModelsConfig(StageConfig):
    """Compare what finished models have learnt: which layers are alike, where the answers part, where each one looks.

    CKA of two layers (linear, Kornblith et al. 2019, arXiv 1905.00414): HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)) of the
    Gram matrices of their features, 1 for features that differ by a rotation and a factor, about 0 for unrelated ones.
    HSIC is the unbiased estimate of each batch (Song et al. 2012), averaged over the batches before it is divided
    (Nguyen et al. 2021, arXiv 2010.15327, eq. 3): unrelated layers may lie a little below 0, and what is estimated does
    not depend on the size of a batch.

    Semantic mismatch (after SemCKD, Chen et al. 2021): the mean over samples of the distance between the rows of two
    layers' F Fᵀ, each divided by its length: 0 for the same similarities, √2 for rows with nothing in common. A row has
    an entry per sample of its batch, so that only numbers of one `batch_size` are to be compared.

    Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) of the class that each model predicts, at its last compared layer
    that has maps; a model without maps has none, which is said. The files: `comparison.json`, `samples.parquet` with
    every model's answer to each sample, `grad_cam.safetensors`.
    """

    word = "compare_models"
    implementation = "raydistill.stages.compare_models:compare_models"
    makes = "comparison"

    models: tuple[ModelRef, ...] = Field(min_length=1, max_length=10)
    """Whose models are compared, each with each; all replicas of a stage."""
    split: Literal["validation", "test"] = "validation"
    """On whose samples."""
    samples: Annotated[Integer, Field(ge=4, le=1_000_000)] = 2000
    """On how many of them, drawn by their ids; on all, where there are fewer."""
    layers: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="by name or path, where a model has them; all that it names when left out",
    )
    pictures: Annotated[Integer, Field(ge=0, le=50)] | Annotated[tuple[Sample, ...], Field(max_length=50)] = 6
    """On how many pictures Grad-CAM is shown, those first on which the models part and are most sure; or their ids."""
    batch_size: Annotated[Integer, Field(ge=4, le=10_000)] = 100
    """Samples at a time, among which the features are compared."""

    def settled(self, site: "Site") -> "CompareModelsConfig":
        site.check_distinct(self.models, "models")
        if len(self.models) < 2:
            raise site.error("one model is like itself; name another one to compare it with", "models")
        return self

    @property
    def learns_from_test(self) -> bool:
        """What it says of the test split is its result."""
        return self.split == "test"

    @property
    def compares_features(self) -> bool:
        """Whether the plan names layers that a model may lack."""
        return self.layers is not None

    def role(self, *, teaches: bool, has_student: bool) -> str:
        return "comparison"
