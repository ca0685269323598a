"""Colours and style of the report, for light and dark. Plots are drawn in the light colours and follow the page."""

COLOURS = {
    "ink": ("#1d2430", "#e8eaed"),
    "muted": ("#5d6675", "#a0a8b4"),
    "rule": ("#d8dce2", "#39414d"),
    "paper": ("#fefefe", "#15191f"),
    "raised": ("#f4f5f7", "#1e242c"),
    "teacher": ("#1f6fb4", "#6cb2ef"),
    "ensemble": ("#7a4fb5", "#b99bf0"),
    "committee": ("#b02a6b", "#f084b6"),
    "specialist": ("#0b7f95", "#4cc3d9"),
    "clusters": ("#5f7a1c", "#a9c45c"),
    "assistant": ("#0f8467", "#4cc9a4"),
    "student": ("#cc4a0b", "#ff9a66"),
    "baseline": ("#7b7166", "#b8ada0"),
    "targets": ("#9a7d12", "#d6ba55"),
    "model": ("#1e6eb3", "#6bb1ee"),
    "good": ("#1a7f45", "#5fcf8e"),
    "bad": ("#b3261e", "#ff8a80"),
}
"""Name → colour on a light page, colour on a dark page. The light ones differ from each other: see `themed`."""

ROLE_LABELS = {
    "teacher": "teacher",
    "ensemble": "ensemble",
    "committee": "committee",
    "specialist": "specialist",
    "clusters": "clusters of classes",
    "assistant": "assistant",
    "student": "student",
    "baseline": "baseline",
    "model": "model",
    "targets": "soft targets",
}


def role_colour(role: str) -> str:
    """The name of a role's colour."""
    return role if role in ROLE_LABELS else "muted"


def light(name: str) -> str:
    """A colour by its name, as plots on white use it."""
    return COLOURS[name][0]


def themed(svg: str) -> str:
    """Let a drawing follow the page: each light colour becomes the variable of its name."""
    for name, (colour, _) in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg


def _variables(column: int) -> str:
    return "".join(f"--{name}:{pair[column]};" for name, pair in COLOURS.items())


STYLE = (
    f":root{{color-scheme:light dark;{_variables(0)}}}"
    f"@media (prefers-color-scheme:dark){{:root{{{_variables(1)}}}}}"
    """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);
 font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:68rem;margin:0 auto;padding:2.5rem 1.25rem 5rem}
h1{font-size:1.9rem;line-height:1.2;letter-spacing:-.015em;margin:0 0 .4rem;overflow-wrap:anywhere}
h2{font-size:1.25rem;line-height:1.3;letter-spacing:-.005em;margin:3.2rem 0 .5rem;padding-top:.9rem;
 border-top:1px solid var(--rule)}
h3{font-size:1rem;margin:1.6rem 0 .4rem}
h4{font-size:.9rem;margin:.9rem 0 0;color:var(--muted)}
p{margin:.4rem 0 .9rem;max-width:44rem}
.muted,figcaption,.note{color:var(--muted)}
.note,figcaption{font-size:.875rem;line-height:1.5}
.lead{font-size:1.18rem;line-height:1.5;max-width:46rem;margin:1.4rem 0 .8rem}
.facts{margin:0;color:var(--muted);font-size:.9rem}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace;font-size:.85em}
code{overflow-wrap:anywhere}
pre{background:var(--raised);border-radius:6px;padding:.8rem 1rem;overflow-x:auto;line-height:1.45;margin:.4rem 0 1rem;
 tab-size:2}
pre.wrap{white-space:pre-wrap;overflow-wrap:anywhere}
.status{font-size:.8rem;font-weight:600;padding:.1rem .55rem;border-radius:1rem;border:1px solid currentColor;
 vertical-align:.25em;margin-left:.6rem;white-space:nowrap}
.good{color:var(--good)}.bad{color:var(--bad)}
.figures{display:flex;flex-wrap:wrap;gap:1.2rem 2rem;align-items:flex-start}
figure{margin:.6rem 0 1rem;min-width:0}
.figures figure{flex:1 1 19rem;max-width:30rem;margin:.4rem 0}
.figures.small figure{flex:1 1 15rem;max-width:19rem}
.wide{max-width:34rem}
.wider{max-width:52rem}
.narrow{max-width:34rem}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{font-family:inherit;font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto;margin:.6rem 0 .9rem;-webkit-overflow-scrolling:touch}
table{border-collapse:collapse;font-size:.9rem;line-height:1.4;font-variant-numeric:tabular-nums;min-width:100%}
th{font-weight:600;text-align:left;color:var(--muted);font-size:.8rem;vertical-align:bottom;
 border-bottom:1px solid var(--ink)}
th,td{padding:.36rem .9rem .36rem 0;white-space:nowrap}
th:last-child,td:last-child{padding-right:0}
td{border-bottom:1px solid var(--rule);vertical-align:top}
.number{text-align:right}
th:first-child,td:first-child{position:sticky;left:0;background:var(--paper)}
.text{white-space:normal;overflow-wrap:anywhere}
td.aside,th.aside{padding-left:.5rem}
td small,.lead small{color:var(--muted)}
tr.member td{
 color:var(--muted);border-bottom-color:transparent;padding-top:.08rem;padding-bottom:.08rem;font-size:.84rem}
tr.member td:first-child{padding-left:1.15rem}
tr.last td{border-bottom:1px solid var(--rule);padding-bottom:.4rem}
tr.group td{border-bottom-color:transparent}
tr.chosen td{font-weight:600}
.swatch{display:inline-block;width:.68em;height:.68em;border-radius:2px;margin-right:.5em;background:currentColor}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;font-size:.84rem;color:var(--muted);margin:.4rem 0}
.failure{border-left:3px solid var(--bad);padding-left:1rem;margin:1.2rem 0}
.failure h3{margin-top:0}
.cards{display:grid;
 grid-template-columns:repeat(auto-fill,minmax(min(100%,20rem),1fr));gap:1.8rem 2.2rem;margin:1.2rem 0}
.card{display:grid;grid-template-columns:5.2rem 1fr;gap:0 1rem;align-content:start}
.card p b{font-size:1rem}
.card img{width:5.2rem;height:5.2rem;object-fit:contain;image-rendering:pixelated;border-radius:4px;
 background:var(--raised)}
.card p{margin:0;font-size:.9rem;line-height:1.45;overflow-wrap:anywhere;align-self:center}
.bars{grid-column:1/-1;display:grid;grid-template-columns:minmax(1.6rem,max-content) 1fr 1fr;gap:.2rem .7rem;
 font-size:.78rem;margin-top:.5rem;align-items:center;line-height:1.25}
.bars b{font-weight:600;color:var(--muted);font-size:.74rem}
.bars .name{max-width:7.5rem;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.bars .true{font-weight:700}
.bars.single{grid-template-columns:minmax(1.6rem,max-content) 1fr}
.bar{display:flex;align-items:center;gap:.35rem;height:.78rem;font-size:.7rem;font-variant-numeric:tabular-nums;
 color:var(--muted)}
.bar i{display:block;height:.5rem;border-radius:1px;min-width:1px;flex:none}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1.2rem;font-size:.9rem;margin:.4rem 0 1rem}
dt{color:var(--muted)}dd{margin:0;overflow-wrap:anywhere}
details{margin:.6rem 0}details.names{margin:0}details.names summary{font-weight:400;font-size:inherit}
summary{cursor:pointer;font-weight:600;font-size:.95rem}
@media (max-width:36rem){main{padding:1.4rem 1rem 3rem}h1{font-size:1.55rem}.lead{font-size:1.08rem}
 h2{margin-top:2.4rem}}
@media print{:root{color-scheme:light}.scroll{overflow:visible}details{display:block}}
"""
)
