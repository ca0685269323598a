"""What a method, or a stage that trains, can do beyond its loss, in words: read off what its class declares."""

from raydistill.kinds.method_options import MethodOptions
from raydistill.kinds.stage_bases import TrainingConfig
from raydistill.plan.kind import Kind


def capabilities(kind: type[Kind]) -> tuple[str, ...]:
    """Whether it learns from stored targets, from several teachers, on several workers, and resumes exactly, as it is
    by default; nothing of a kind that trains nothing."""
    if issubclass(kind, MethodOptions):
        told = (_targets(kind), _teachers(kind), _workers(kind))
        resumes = kind.resumes_exactly
    elif issubclass(kind, TrainingConfig):
        told = ("", "", "several workers" if kind.shares_work else "")
        resumes = kind.resumes_exactly
    else:
        return ()
    return tuple(part for part in (*told, "exact resume" if resumes else "") if part)


def _targets(kind: type[MethodOptions]) -> str:
    options = kind()
    if options.stored_features:
        return "stored embeddings"
    if options.looks_at_logits:
        return "stored logits"
    return "live teacher alone" if options.needs_features else ""


def _teachers(kind: type[MethodOptions]) -> str:
    if kind.weighs_teachers:
        return "several teachers, each heard by itself"
    return "several teachers" if kind().looks_at_logits else ""


def _workers(kind: type[MethodOptions]) -> str:
    return (
        "several workers, each with its part of a batch" if kind.couples_samples else "any number of workers"
    )
