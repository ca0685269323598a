"""`distill serve`: one model over HTTP, for this machine unless told otherwise.

    POST /invocations   a picture as it is in its file, a .npy, or JSON: {"inputs": [...]}, nested lists of numbers, or
                        pictures in base64. ?top=3 says how many classes are told
    GET /model          what it takes and which classes it knows
    GET /ping, /health  whether it is there

The addresses and the key `inputs` are those of MLflow's scoring server, whose JSON takes no bytes of a picture. What a
body is, is seen by how it begins: many a client sends whatever header its library has.
"""

import json
import socket
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import click
import numpy as np
import uvicorn
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from raydistill.errors import DistillError, PlanError
from raydistill.inference.given import Answering, array_of, decoded_text
from raydistill.model_card import contract
from raydistill.prediction import load_predictor, task_of
from raydistill.tasks.picture_files import printable
from raydistill.training.trust import NOBODY, Trust

NPY = b"\x93NUMPY"
MOST_BYTES = 2**26  # of a body
TOP = 3
STOP_SECONDS = 5


def serve_model(
    model: Path,
    trust: Trust = NOBODY,
    *,
    host: str = "127.0.0.1",
    port: int = 5001,
    on_ready: Callable[[str], None] = click.echo,
) -> None:
    """Answer requests until interrupted; `on_ready` gets one line with the address once they are taken.

    Port 0 is any that is free. `DistillError` when the port is taken, `PlanError` when there is no model.
    """
    predictor = load_predictor(model, trust)
    app = application(Answering.of(predictor, task_of(predictor, model, trust)), contract(predictor.first))
    with closing(_listening(host, port)) as listener:
        config = uvicorn.Config(
            app, log_config=None, access_log=False, timeout_graceful_shutdown=STOP_SECONDS
        )
        address = _address(host, listener.getsockname()[1])
        on_ready(f"{printable(str(model))} answers at {address}/invocations (interrupt to stop)")
        with suppress(KeyboardInterrupt):  # which uvicorn raises again when the last answer is out
            uvicorn.Server(config).run(sockets=[listener])


def application(answering: Answering, about: Mapping[str, Any]) -> Starlette:
    """The server as an ASGI application, to be mounted in a larger one. `about` is what /model says."""

    async def invocations(request: Request) -> Response:
        top = _top(request.query_params.get("top", str(TOP)))
        body = await _body(request)
        return JSONResponse({"predictions": await run_in_threadpool(_answer, answering, body, top)})

    async def model(request: Request) -> Response:
        return JSONResponse(about)

    async def ping(request: Request) -> Response:
        return Response("\n", media_type="application/json")

    return Starlette(
        routes=[
            Route("/invocations", invocations, methods=["POST"]),
            Route("/model", model),
            Route("/ping", ping),
            Route("/health", ping),
        ],
        exception_handlers={
            DistillError: _refused,
            HTTPException: _wrong_address,
            Exception: _broken,
        },
    )


def _answer(answering: Answering, body: bytes, top: int) -> list[list[dict[str, Any]]]:
    ranked = answering.ranked(_probabilities(answering, body), top)
    return [[{"label": name, "probability": value} for name, value in row] for row in ranked]


def _probabilities(answering: Answering, body: bytes) -> NDArray[np.float32]:
    if not body:
        raise PlanError("the request has no body; send a picture, a .npy or JSON")
    if body.startswith(NPY):
        return answering.arrays(array_of(body))
    if not body.lstrip().startswith((b"{", b"[")):
        return answering.pictures([body])
    inputs = _inputs(body)
    if inputs and all(isinstance(one, str) for one in inputs):
        return answering.pictures([decoded_text(one, place) for place, one in enumerate(inputs)])
    try:
        values = np.array(inputs)
    except (ValueError, TypeError, OverflowError):  # lists of other lengths beside one another
        raise PlanError(
            "`inputs` are neither numbers in lists of equal lengths nor pictures in base64"
        ) from None
    return answering.arrays(values)


def _inputs(body: bytes) -> list[Any]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"the JSON cannot be read: {error}") from None
    inputs = content.get("inputs") if isinstance(content, Mapping) else None
    if not isinstance(inputs, list):
        raise PlanError('the JSON has no list `inputs`; send {"inputs": [...]}')
    return inputs


def _top(text: str) -> int:
    if not text.isdecimal() or not int(text[:9]) >= 1:
        raise PlanError(f"`top` is `{printable(text[:40])}`; write how many classes to tell, at least 1")
    return int(text[:9])


async def _body(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MOST_BYTES:
            raise HTTPException(413, f"a body has {MOST_BYTES >> 20} MiB at most; send fewer inputs at once")
        parts.append(part)
    return b"".join(parts)


async def _refused(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": " ".join(str(error).split())}, 400)


async def _wrong_address(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _broken(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"{type(error).__name__}, see the server's log"}, 500)


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise DistillError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another one with `--port`"
        ) from None
    return listener


def _address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
