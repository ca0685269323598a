"""Colours and style of the report, for light and dark. Plots are drawn in the light colours and follow the page."""

PAGE_COLOURS = {
    "ink": ("#1d2430", "#e8eaed"),
    "muted": ("#5d6675", "#a0a8b4"),
    "rule": ("#d8dce2", "#39414d"),
    "paper": ("#fefefe", "#15191f"),
    "raised": ("#f4f5f7", "#1e242c"),
    "good": ("#1a7f45", "#5fcf8e"),
    "bad": ("#b3261e", "#ff8a80"),
}
ROLE_COLOURS = {
    "teacher": ("#1f6fb4", "#6cb2ef"),
    "assistant": ("#0f8467", "#4cc9a4"),
    "committee": ("#b02a6b", "#f084b6"),
    "targets": ("#9a7d12", "#d6ba55"),
    "ensemble": ("#7a4fb5", "#b99bf0"),
    "specialist": ("#0b7f95", "#4cc3d9"),
    "clusters": ("#5f7a1c", "#a9c45c"),
    "baseline": ("#7b7166", "#b8ada0"),
    "student": ("#cc4a0b", "#ff9a66"),
    "model": ("#1e6eb3", "#6bb1ee"),
}
"""Neighbours are easily told apart."""

COLOURS = PAGE_COLOURS | ROLE_COLOURS
"""Name → colour on a light page, colour on a dark page. The light ones differ from each other: see `themed`."""

ROLE_LABELS = {"clusters": "clusters of classes", "targets": "soft targets"}


def role_colour(role: str) -> str:
    """The name of a role's colour."""
    return role if role in ROLE_COLOURS else "muted"


def role_label(role: str) -> str:
    """What a legend calls a role."""
    return ROLE_LABELS.get(role, role or "other")


def light(name: str) -> str:
    """A colour by its name, as plots on white use it."""
    return COLOURS[name][0]


def themed(svg: str) -> str:
    """Let a drawing follow the page: each light colour becomes the variable of its name."""
    for name, (colour, _) in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg
