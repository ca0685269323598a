"""Whether this machine, or every node of a Ray cluster, is fit for a plan: one finding per check and place.

Nothing is left behind but the storage root itself. Without a Ray cluster the same questions are put to this process.
"""

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from raydistill.errors import DistillError, PlanError
from raydistill.execution.ray_backend import probes
from raydistill.execution.ray_backend.connection import connect, leave
from raydistill.execution.ray_backend.tokens import TOKEN_HINT, read_token
from raydistill.execution.survey import Remark, probed_models, remarks_on_models, survey_of_data
from raydistill.execution.user_code import user_modules
from raydistill.masking import mask
from raydistill.plan.order import order_stages
from raydistill.plan.schema import Plan
from raydistill.runs.bucket import Bucket
from raydistill.runs.mirror import mirror_at, storage_name
from raydistill.runs.record import summary_of
from raydistill.tracking.server import SCHEMES, ServerProblem, ask_version, major
from raydistill.tracking.store import answers, is_missing, resolve_uri

Verdict = Literal["ok", "warn", "fail"]

PACKAGES = ("raydistill", "ray", "torch", "torchvision", "mlflow", "pyarrow", "pydantic", "numpy")
MUST_AGREE = ("python", "ray")  # or processes do not talk to one another
GIB = 2**30
LEAST_FREE = 5 * GIB
MOST_SECONDS_APART = 2.0
SURVEY_SECONDS = 3600.0  # a node may have to read all pictures
HERE = "here"
VERDICTS: dict[str, Verdict] = {"error": "fail", "warning": "warn", "note": "ok"}
DIGEST = 32  # characters of it that tell two apart


@dataclass(frozen=True)
class Finding:
    """What one check found in one place."""

    check: str
    where: str
    verdict: Verdict
    text: str
    way_out: str = ""


@dataclass(frozen=True)
class Examination:
    """What is looked at. Without an `address`, `RAY_ADDRESS` names the Ray cluster; without both, there is none."""

    root: Path
    plan: Plan | None = None
    address: str | None = None
    tracking_uri: str | None = None


@dataclass(frozen=True)
class Reply:
    """What a place said, or why it said nothing."""

    where: str
    value: Any = None
    error: str | None = None


Asker = Callable[..., list[Reply]]


def examine(examination: Examination) -> list[Finding]:
    """All findings, in the order in which a person would put things right."""
    address = examination.address or os.environ.get("RAY_ADDRESS")
    findings = list(_authentication())
    joined = owned = False
    if address is not None and not any(finding.verdict == "fail" for finding in findings):
        try:
            owned, joined = connect(address), True
        except DistillError as error:
            findings.append(Finding("Ray cluster", address, "fail", error.message))
    try:
        ask = _ask_nodes if joined else _ask_here
        findings += _nodes() if joined else []
        findings += _machines(ask)
        findings += _storage(examination.root)
        findings += _shared_storage(examination.root) if joined else []
        findings += _clocks(ask) if joined else []
        if examination.plan is None or examination.plan.tracking != "none":
            findings += _tracking(examination.root, examination.tracking_uri)
        findings += _room(examination.plan) if joined and examination.plan is not None else []
        findings += [] if examination.plan is None else _needs_of(examination.plan, examination.root, ask)
    finally:
        if owned:
            leave()
    return findings


def _room(plan: Plan) -> list[Finding]:
    """Whether the Ray cluster, all of it idle, has room for every stage."""
    from raydistill.execution.ray_backend.autoscaler import is_there
    from raydistill.execution.ray_backend.feasible import check_feasible
    from raydistill.execution.ray_backend.running import machines_alive

    try:
        nodes = list(order_stages(plan).nodes.values())
        lacking = check_feasible(nodes, machines_alive(), can_grow=is_there())
    except (OSError, ValueError):  # data that is not here: its own check says so
        return []
    except PlanError as error:
        return [Finding("resources", "the Ray cluster", "fail", error.message)]
    if lacking:
        names = ", ".join(f"`{name}`" for name in dict.fromkeys(node.stage for node in lacking))
        return [
            Finding(
                "resources", "the Ray cluster", "warn", f"its autoscaler will be asked for room for {names}"
            )
        ]
    return [Finding("resources", "the Ray cluster", "ok", "room for every stage")]


def _ask_here(question: Callable[..., Any], *arguments: Any, where: str | None = None) -> list[Reply]:
    return [Reply(HERE, question(*arguments))]


def _ask_nodes(question: Callable[..., Any], *arguments: Any, where: str | None = None) -> list[Reply]:
    """Every node, or patiently the one that is called so."""
    from raydistill.execution.ray_backend.nodes import ANSWER_SECONDS, ask_nodes, list_nodes

    nodes = [node for node in list_nodes() if node.is_alive and where in (None, str(node))]
    seconds = ANSWER_SECONDS if where is None else SURVEY_SECONDS
    return [
        Reply(str(answer.node), answer.value, answer.error)
        for answer in ask_nodes(nodes, question, lambda node: arguments, seconds)
    ]


def _authentication() -> Iterator[Finding]:
    try:
        token = None if os.environ.get("RAY_AUTH_MODE") == "disabled" else read_token()
    except DistillError as error:
        yield Finding("Ray token", HERE, "fail", error.message)
        return
    if token:
        yield Finding("Ray token", HERE, "ok", "present")
    elif os.environ.get("RAY_AUTH_MODE") == "token":
        yield Finding("Ray token", HERE, "fail", "`RAY_AUTH_MODE=token`, but there is none", TOKEN_HINT)
    else:
        yield Finding(
            "Ray token",
            HERE,
            "warn",
            "none: whoever reaches a Ray cluster without one runs code on it",
            "`ray get-auth-token --generate`; copy `~/.ray/auth_token` to every node; `RAY_AUTH_MODE=token`",
        )


def _nodes() -> Iterator[Finding]:
    from raydistill.execution.ray_backend.nodes import list_nodes

    for node in list_nodes():
        if node.is_alive:
            yield Finding("node", str(node), "ok", str(node.resources))
        else:
            yield Finding("node", str(node), "warn", "dead", "start it again, or go on without it")


def _machines(ask: Asker) -> Iterator[Finding]:
    """Versions, against those of this process, and GPUs."""
    own = probes.read_versions(PACKAGES)
    for reply in ask(probes.read_versions, PACKAGES):
        if reply.error is not None:
            yield Finding("versions", reply.where, "fail", reply.error, "see the node's Ray logs")
        else:
            yield _versions(reply.where, reply.value, own)
    for reply in ask(probes.list_gpus):
        problem = reply.error or reply.value.get("problem")
        if problem:
            yield Finding(
                "GPUs", reply.where, "fail", f"torch cannot be used: {problem}", "install torch there again"
            )
        else:
            yield Finding(
                "GPUs", reply.where, "ok", ", ".join(reply.value["names"]) or "none that torch sees"
            )


def _versions(where: str, found: dict[str, str | None], own: dict[str, str | None]) -> Finding:
    text = ", ".join(f"{name} {number or 'missing'}" for name, number in found.items())
    # A job brings our own code along: it need not be installed there.
    missing = [name for name, number in found.items() if number is None and name != "raydistill"]
    others = [f"{name} {own[name]} here" for name, number in found.items() if number != own[name]]
    if missing:
        return Finding("versions", where, "fail", text, f"install {', '.join(missing)} there")
    if any(found[name] != own[name] for name in MUST_AGREE):
        return Finding("versions", where, "fail", text, f"make them equal: {', '.join(others)}")
    if others:
        return Finding("versions", where, "warn", text, f"numbers may differ: {', '.join(others)}")
    return Finding("versions", where, "ok", text)


def _storage(root: Path) -> Iterator[Finding]:
    """The storage root, or the folder that it would be made in, as this process sees it."""
    if (mirror := mirror_at(root)) is not None:
        yield _bucket(mirror.bucket)
        root = root.parent  # its files of this machine need room too
    place = next(path for path in (root, *root.parents) if path.exists())
    if not place.is_dir():
        yield Finding(
            "storage root", HERE, "fail", f"`{place}` is no folder", "name another one with `--runs`"
        )
    elif not os.access(place, os.W_OK | os.X_OK):
        yield Finding(
            "storage root", HERE, "fail", f"`{place}` cannot be written to", "`--runs`, or its permissions"
        )
    else:
        free = shutil.disk_usage(place).free
        text = f"`{root}`{'' if place == root else ', not there yet'}, {free / GIB:,.1f} GiB free"
        if free < LEAST_FREE:
            yield Finding(
                "storage root", HERE, "warn", text, "free some space; soft targets and checkpoints are large"
            )
        else:
            yield Finding("storage root", HERE, "ok", text)


def _bucket(bucket: Bucket) -> Finding:
    key, content = f".probe-{uuid.uuid4().hex}", b"raydistill"
    try:
        bucket.write(key, content)
        held = bucket.read(key)
        bucket.delete([key])
    except DistillError as error:
        return Finding(
            "storage root", HERE, "fail", error.message, "mend the credentials, or the bucket's rules"
        )
    if held is None or held.content != content:
        return Finding(
            "storage root", HERE, "fail", f"`{bucket.url}` does not give back what was written", "another"
        )
    return Finding("storage root", HERE, "ok", f"`{bucket.url}` is read and written")


def _shared_storage(root: Path) -> Iterator[Finding]:
    from raydistill.execution.ray_backend.nodes import list_nodes
    from raydistill.execution.ray_backend.storage import storage_problems

    nodes = [node for node in list_nodes() if node.is_alive]
    try:
        problems = storage_problems(storage_name(root), nodes)
    except DistillError as error:
        yield Finding("shared storage", HERE, "fail", error.message)
        return
    for node in nodes:
        if problem := problems.get(node):
            way_out = "mount the same file system there, or name one that all nodes have with `--runs`"
            yield Finding("shared storage", str(node), "fail", f"it {problem}", way_out)
        else:
            yield Finding("shared storage", str(node), "ok", "reads and writes the same files")


def _clocks(ask: Asker) -> Iterator[Finding]:
    """How far a clock is off at the least: it must read a time between question and answer."""
    asked = time.time()
    replies = ask(probes.read_clock)
    received = time.time()
    for reply in replies:
        if reply.error is None:
            yield _clock(reply.where, max(asked - reply.value, reply.value - received))


def _clock(where: str, apart: float) -> Finding:
    if apart <= 0:
        return Finding("clock", where, "ok", "as here")
    verdict: Verdict = "warn" if apart > MOST_SECONDS_APART else "ok"
    way_out = "run a time service (chrony, ntpd) on every node" if verdict == "warn" else ""
    return Finding("clock", where, verdict, f"at least {apart:.1f} s off", way_out)


def _tracking(root: Path, tracking_uri: str | None) -> Iterator[Finding]:
    uri = resolve_uri(root, tracking_uri)
    shown = mask(uri)
    if uri.startswith(SCHEMES):
        yield _tracking_server(uri, shown)
    elif is_missing(uri):
        yield Finding("tracking", HERE, "ok", f"`{shown}`, which the first run makes")
    elif answers(uri, root):
        yield Finding("tracking", HERE, "ok", f"`{shown}`, MLflow {version('mlflow')}")
    else:
        text = f"`{shown}` does not open with MLflow {version('mlflow')}"
        yield Finding(
            "tracking", HERE, "fail", text, "another MLflow may have made it: `mlflow db upgrade URI`"
        )


def _tracking_server(uri: str, shown: str) -> Finding:
    own = version("mlflow")
    try:
        theirs = ask_version(uri)
    except ServerProblem as problem:
        return Finding("tracking", HERE, "fail", problem.message, problem.way_out)
    if major(theirs) != major(own):
        text = f"`{shown}` is MLflow {theirs}, here it is {own}"
        return Finding("tracking", HERE, "fail", text, "use the same major version on both sides")
    return Finding("tracking", HERE, "ok", f"`{shown}`, MLflow {theirs}")


def _needs_of(plan: Plan, root: Path, ask: Asker) -> Iterator[Finding]:
    """The plan's data and the user's modules, wherever stages may run; and at one such place, what a run would look at
    before its first stage."""
    replies = ask(probes.find_data, plan.task.model_dump(mode="json"))
    yield from _data(replies)
    if modules := user_modules(plan):
        for reply in ask(probes.find_modules, modules, str(Path.cwd())):
            yield _imports(reply, modules)
    places = [reply.where for reply in replies if reply.value and "content" in reply.value]
    if places:
        yield from _survey(plan, root, ask, places[0])


def _survey(plan: Plan, root: Path, ask: Asker, where: str) -> Iterator[Finding]:
    try:
        graph = order_stages(plan)
    except (DistillError, OSError, ValueError) as error:
        yield Finding("survey", where, "warn", f"left out: {summary_of(error)}", "the data must be here, too")
        return
    models = probed_models(graph, list(graph.nodes.values()), plan.task)
    data, _ = survey_of_data(list(graph.nodes.values()))
    told = (plan.task, data, *models)
    task, survey, *values = (part.model_dump(mode="json") for part in told)
    (reply,) = ask(probes.look_at_plan, task, survey, values, str(Path.cwd()), where=where)
    if problem := reply.error or reply.value.get("problem"):
        yield Finding("survey", where, "fail", problem)
        return
    remarks = [Remark(**finding) for finding in reply.value["findings"]]
    remarks += remarks_on_models(graph, models, reply.value["models"], root)
    for remark in remarks:
        yield Finding("survey", where, VERDICTS[remark.level], str(remark))
    if not remarks:
        samples = sum(sum(counts) for counts in reply.value["counts"].values())
        fit = f"{len(models)} model{'s' * (len(models) != 1)} fit for training"
        yield Finding("survey", where, "ok", f"{samples:,} samples, {fit}")


def _data(replies: Sequence[Reply]) -> Iterator[Finding]:
    first = next(
        (reply.value["content"] for reply in replies if reply.value and "content" in reply.value), None
    )
    for reply in replies:
        problem = reply.error or reply.value.get("problem")
        if problem:
            yield Finding(
                "data", reply.where, "fail", problem, "`RAYDISTILL_DATA` names the node's own data root"
            )
        elif reply.value["content"] != first:
            text = f"other data than `{replies[0].where}`"
            yield Finding("data", reply.where, "fail", text, "copy the same files to every node")
        else:
            yield Finding("data", reply.where, "ok", str(first)[:DIGEST])


def _imports(reply: Reply, modules: Sequence[str]) -> Finding:
    if reply.error is not None:
        return Finding("modules", reply.where, "fail", reply.error)
    if not reply.value:
        return Finding("modules", reply.where, "ok", ", ".join(modules))
    text = "; ".join(f"`{name}`: {problem}" for name, problem in reply.value.items())
    return Finding(
        "modules", reply.where, "fail", text, "`distill submit` sends them along; or install them there"
    )
