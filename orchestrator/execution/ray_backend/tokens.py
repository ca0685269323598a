"""Who may run code on a Ray cluster: its token, and ours.

Ray listens on all interfaces, and whoever reaches one of its ports runs code there unless the cluster wants a token. A
cluster that we start gets one of its own, whatever Ray's default or the user's settings say: random, in the environment
of its processes, in no file (Ray writes `~/.ray/auth_token` with mode 644), gone when it ends. A cluster that we join
is asked first what it wants: in the wrong mode a client joins, and then its workers die without a word.
"""

import logging
import os
import secrets
import sys
from pathlib import Path

from raydistill.errors import PlanError
from raydistill.execution.ray_backend.private import read_authentication_again

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
ANSWER_SECONDS = 5.0
QUESTION = "/ray.rpc.NodeInfoGcsService/CheckAlive"  # answered with the cluster's version; an empty one asks of no node
TOKEN_HINT = (
    "copy the Ray cluster's `~/.ray/auth_token` to this machine (mode 600), or set `RAY_AUTH_TOKEN` to its content, and"
    " set `RAY_AUTH_MODE=token`"
)

log = logging.getLogger(__name__)
_replaced: dict[str, str | None] = {}


def guard_own_cluster() -> None:
    """Give the cluster that starts next a fresh token, which this process and its children alone know."""
    _set({MODE: "token", TOKEN: secrets.token_hex(32), TOKEN_PATH: None})


def match_cluster(address: str) -> None:
    """Use the token or none, as the cluster at `address` has it. `PlanError` when it cannot be had so from here."""
    is_guarded = refuses(address, token=None)
    if is_guarded is None:
        use_token()
    elif is_guarded:
        _show_token(address)
    else:
        _do_without(address)


def give_back() -> None:
    """Put the user's own settings back."""
    _set(_replaced)
    _replaced.clear()


def use_token() -> str | None:
    """Let Ray's clients in this process use the user's token, if there is one; returns it.

    For a dashboard: by HTTP a client with a token also works where none is wanted.
    """
    if os.environ.get(MODE) == "disabled":
        return None
    token = read_token()
    if token and os.environ.get(MODE) is None:
        _set({MODE: "token"})
    return token


def read_token() -> str | None:
    """This user's token, from where Ray looks for it; `PlanError` when a file that should hold it cannot be read."""
    if token := os.environ.get(TOKEN):
        return token.strip()
    named = os.environ.get(TOKEN_PATH)
    path = Path(named).expanduser() if named else Path.home() / ".ray" / "auth_token"
    if not named and not path.exists():
        return None
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise PlanError(f"Ray's token file `{path}` cannot be read: {reason}; {TOKEN_HINT}") from None
    if not token:
        raise PlanError(f"Ray's token file `{path}` is empty; {TOKEN_HINT}")
    return token


def refuses(address: str, token: str | None) -> bool | None:
    """Whether the cluster at `host:port` turns away who shows this token, or none; None when it does not tell.

    Asked by plain gRPC: Ray's own client has one mode for its whole process, and takes 5 s to be refused.
    """
    import grpc

    metadata = [("authorization", f"Bearer {token}")] if token else None
    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary(QUESTION)(b"", timeout=ANSWER_SECONDS, metadata=metadata)
        except grpc.RpcError as error:
            return True if error.code() is grpc.StatusCode.UNAUTHENTICATED else None
    return False


def _show_token(address: str) -> None:
    if os.environ.get(MODE) == "disabled":
        raise PlanError(
            f"the Ray cluster at `{address}` wants a token, and `{MODE}=disabled` keeps this client from sending one:"
            f" {TOKEN_HINT}"
        )
    token = read_token()
    if token is None:
        raise PlanError(f"the Ray cluster at `{address}` wants a token, and there is none here: {TOKEN_HINT}")
    if refuses(address, token):
        raise PlanError(f"the Ray cluster at `{address}` refuses this client's token: {TOKEN_HINT}")
    _set({MODE: "token"})


def _do_without(address: str) -> None:
    if os.environ.get(MODE) == "token":
        raise PlanError(
            f"the Ray cluster at `{address}` has no token, and `{MODE}=token` is set here, so its workers could not"
            f" answer: start it with a token (`ray get-auth-token --generate`, `{MODE}=token ray start`), or unset"
            f" `{MODE}`"
        )
    if os.environ.get(MODE) is None and read_token():
        log.warning(
            "the Ray cluster at `%s` has no token: this machine's is not used, and whoever reaches it runs code there",
            address,
        )
    _set({MODE: "disabled"})


def _set(values: dict[str, str | None]) -> None:
    """Change variables, keeping what they were."""
    for name, value in list(values.items()):
        _replaced.setdefault(name, os.environ.get(name))
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    if "ray" in sys.modules:
        read_authentication_again()
