"""Methods that compare features of a student with those of a live teacher."""

from typing import ClassVar, Literal

from pydantic import Field

from orchestrator.plan.method_options import MethodOptions


class HintsConfig(MethodOptions):
    """Hints: a regressor on a student's feature matches the teacher's (FitNets, Romero et al. 2015, arXiv 1412.6550).

    loss = weight · ½ ‖u_h(x) - r(v_g(x))‖², summed over the feature and averaged over the batch (`reduction: sum`, the
    paper's eq. 3), or the mean of squares (`mean`, what toolboxes call FitNet, with a weight of 100). By default the
    features are those of the middle stages. The regressor is a convolution and ReLU, or linear for flat features, as
    the shapes ask for. The paper's two phases are two stages: hints alone, then `initial: <that stage>` with
    `{method: hinton, ramp: {start: 4, end: 1, ...}}`; layers that no loss reaches are left alone.
    """

    method: Literal["hints"]
    student_feature: str | None = Field(None, description="the middle stage when left out")
    teacher_feature: str | None = Field(None, description="the middle stage when left out")
    reduction: Literal["sum", "mean"] = "sum"

    needs_features: ClassVar[bool] = True


class FspConfig(MethodOptions):
    """Flow between layers (FSP, Yim et al., CVPR 2017): Gram matrices of two features match the teacher's.

    loss = weight · mean over the batch of Σ_k ‖G_k^T - G_k^S‖² (`reduction: mean`: divided by the size of G), with
    G = Σ over places of F1 F2ᵀ / (h · w); the larger of two maps is pooled to the smaller grid (`max`, as in the paper,
    or `average`). Channels must be equal. Pairs are (input, output) of sections, by default each stage's output with
    that of the stage before; the paper trains with this loss alone, then on labels with `initial`.
    """

    method: Literal["fsp"]
    student_pairs: tuple[tuple[str, str], ...] | None = Field(
        None, description="(input, output) of each section"
    )
    teacher_pairs: tuple[tuple[str, str], ...] | None = Field(
        None, description="as the student's when left out"
    )
    pool: Literal["max", "average"] = "max"
    reduction: Literal["sum", "mean"] = "sum"

    needs_features: ClassVar[bool] = True
