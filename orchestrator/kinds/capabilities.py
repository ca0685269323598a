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


def needs(kind: type[Kind]) -> str:
    """What a method, or a stage that trains by one of its own, cannot do without, as it is by default; nothing else."""
    if issubclass(kind, MethodOptions):
        options = kind()
        teacher = _teacher_needed(options)
        return " and ".join(part for part in ("labels" if options.needs_labels else "", teacher) if part)
    if not (issubclass(kind, TrainingConfig) and (kind.has_teacher or kind.makes_students)):
        return ""
    if "methods" in kind.model_fields:
        return "teachers or their stored targets; labels as its methods say"
    if kind.has_teacher:
        return "a teacher, no labels"
    return "labels, no teacher"


def _teacher_needed(options: MethodOptions) -> str:
    if options.stored_features:
        return "an embedding of one teacher, stored or live"
    if options.needs_features:
        return "the features of one live teacher"
    if options.weighs_teachers:
        return "the logits of each teacher, stored or live"
    return "the teachers' logits, stored or live" if options.looks_at_logits else ""
