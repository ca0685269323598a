"""Soft targets that somebody else's program computed: what their stage can be told."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from raydistill.kinds.stage_bases import TargetsConfig
from raydistill.kinds.training import TransferConfig
from raydistill.plan.classes import ClassesConfig
from raydistill.plan.config_errors import located_error
from raydistill.plan.sources import by_content
from raydistill.tasks.digests import digest_file
from raydistill.tasks.task import UserPath

if TYPE_CHECKING:
    from raydistill.plan.order import Site

FILES = (".npz", ".npy", ".safetensors", ".parquet")
EMBEDDING = "embedding"
"""What an embedding from a file is called among a teacher's features."""
ID_FILES = (".npy", ".txt")


class ExternalTargetsConfig(TargetsConfig):
    """Take soft targets from a file, of any program: a student reads them as it reads a teacher's.

    The file is .npz, .safetensors or .parquet with `ids` (N,) and one of `logits`, `probabilities` and
    `log_probabilities` (N, classes), or .npy beside a file of ids. Ids are those of the samples, or for tasks of
    picture folders the pictures' paths or file names. Every sample of the transfer set must be there, once, in any
    order; others are left out. Probabilities below 1e-8 become 1e-8. Predictions with the most probable classes alone
    have their numbers in `indices` (N, k); what is missing of a sum of 1 is spread evenly over the other classes.

    `gives: embedding` takes an `embedding` (N, numbers) of each sample in place of predictions, for methods that
    compare one (`embedding`, `relational`, `triplet`); it knows no classes.
    """

    word = "external_targets"
    implementation = "raydistill.stages.external_targets:external_targets"
    surveyed_by = "raydistill.stages.external_targets:survey_external"

    file: UserPath
    """.npz, .npy, .safetensors or .parquet."""
    ids: str = Field("ids", min_length=1)
    """The array of ids; beside a .npy file another .npy, or .txt with an id a line."""
    values: str | None = Field(None, description="the array of predictions; found by its name when left out")
    indices: str | None = Field(None, description="the array of class numbers, where only some are given")
    gives: Literal["logits", "probabilities", "log_probabilities", "embedding"] | None = Field(
        None, description="what the values are; the name of their array when left out, or else logits"
    )
    classes: ClassesConfig | None = Field(
        None, description="names of the columns; the task's order when left out"
    )
    transfer: TransferConfig = TransferConfig()
    """On which samples; the whole training split when left out."""

    @property
    def keeps_some(self) -> bool:
        return self.indices is not None

    @property
    def has_logits(self) -> bool:
        return self.gives != EMBEDDING

    @property
    def stored_features(self) -> tuple[str, ...]:
        return () if self.has_logits else (EMBEDDING,)

    @model_validator(mode="after")
    def _an_embedding_has_no_classes(self) -> "ExternalTargetsConfig":
        for key in ("indices", "classes"):
            if not self.has_logits and getattr(self, key) is not None:
                raise located_error(f"an embedding has no classes; leave `{key}` out", key)
        return self

    def identified(self, values: dict[str, Any]) -> dict[str, Any]:
        """By the content of its files."""
        content = digest_file(self.file) if self.file.is_file() else str(self.file)
        return super().identified(values) | {"file": content, "ids": by_content(self.ids)}

    def check(self, site: "Site") -> None:
        super().check(site)
        if self.file.suffix not in FILES:
            raise site.error(f"`{self.file.name}` is none of {', '.join(FILES)}", "file")
        if not self.file.is_file():
            raise site.error(f"there is no file `{self.file}`", "file")
        if self.file.suffix == ".npy" and not self.ids.endswith(ID_FILES):
            raise site.error("a .npy file has no ids; name the .npy or .txt file that holds them", "ids")
        if self.file.suffix == ".npy" and not Path(self.ids).expanduser().is_file():
            raise site.error(f"there is no file `{self.ids}`", "ids")
        if self.file.suffix == ".npy" and self.indices is not None:
            raise site.error("a .npy file holds one array; give values and indices as .npz", "indices")
        if self.classes is not None and self.classes.has_matrix:
            raise site.error(
                "a matrix makes logits of a model's embedding; a file has logits", "classes", "matrix"
            )
        if self.classes is not None:
            try:
                self.classes.members(site.task.class_names)
            except ValueError as error:
                raise site.error(str(error), "classes") from None
