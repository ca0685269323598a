"""Processes that read samples ahead of the training, the same ones from epoch to epoch.

They come from Python's fork server, a process of its own with a single thread that has imported what they need: each
takes milliseconds to start, and none is a copy of a process whose threads, Ray's and torch's, hold locks that nobody
releases in the copy. They run one thread each, as torch's loaders do.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from raydistill.tasks.devices import to_device

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
IMPORTED = ["raydistill.tasks.folder_split", "raydistill.tasks.dataset_split"]

_starting = threading.Lock()


class Loaders:
    """Loaders of one dataset, whose `__getitems__` makes a batch of a request, or an exception that is to be raised:
    torch would wrap one that a process raises.

    Every iteration has a loader to itself, an idle one where there is one. Where `is_forked`, processes are copies of
    this one all the same, for a dataset that cannot be sent.
    """

    def __init__(self, dataset: Dataset[Any], workers: int, *, is_forked: bool = False) -> None:
        self._dataset, self._workers, self._is_forked = dataset, workers, is_forked
        self._idle: dict[bool, list[DataLoader[Any]]] = {True: [], False: []}
        if workers and not is_forked:
            start_server()

    def batches(self, requests: Sequence[Any], device: torch.device) -> Iterator[Tensor]:
        """The batch of each request, in order, on a device; there one ahead."""
        yield from ahead(self._loaded(requests, is_pinned=device.type != "cpu"), device)

    def _loaded(self, requests: Sequence[Any], *, is_pinned: bool) -> Iterator[Tensor]:
        idle = self._idle[is_pinned]
        loader = idle.pop() if idle else self._loader(is_pinned)
        loader.batch_sampler.requests = requests  # type: ignore[union-attr]
        for batch in _iterated(loader):
            if isinstance(batch, Exception):
                raise batch
            yield batch
        # One that was left before its end, or whose process died, ends with this iteration.
        idle.append(loader)

    def _loader(self, is_pinned: bool) -> DataLoader[Any]:
        return DataLoader(
            self._dataset,
            batch_sampler=_Requests(),
            num_workers=self._workers,
            persistent_workers=self._workers > 0,
            multiprocessing_context=_context(self._is_forked) if self._workers else None,
            worker_init_fn=_end_with_parent,
            pin_memory=is_pinned,  # by a thread of the loader, where the steps do not wait for it
            # Without a generator of its own the loader draws from torch's, and resuming would not repeat exactly.
            generator=torch.Generator(),
            collate_fn=_as_it_is,
        )


class _Requests:
    """What torch calls a sampler of batches: the requests of the iteration that begins next."""

    requests: Sequence[Any] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.requests)

    def __len__(self) -> int:
        return len(self.requests)


def ahead(batches: Iterator[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Batches on a device: the copy of the next one is queued before a batch is given, so that the device need not wait
    for the host between two steps. On the CPU nothing is copied, and nothing read ahead here."""
    if device.type == "cpu":
        yield from batches
        return
    waiting: Tensor | None = None
    for batch in batches:
        following = to_device(batch, device)
        if waiting is not None:
            yield waiting
        waiting = following
    if waiting is not None:
        yield waiting


def start_server() -> None:
    """Start the fork server, if there is none: its imports take seconds, which pass while a stage builds its model."""
    with _starting, _one_thread():
        context = _context()
        if context.get_start_method() == "forkserver":
            context.set_forkserver_preload(IMPORTED)
            forkserver.ensure_running()


def _context(is_forked: bool = False) -> Any:
    methods = multiprocessing.get_all_start_methods()
    if is_forked and "fork" in methods:
        return multiprocessing.get_context("fork")
    return multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")


def _iterated(loader: DataLoader[Any]) -> Iterator[Any]:
    with _starting, _nameless_main():
        return iter(loader)


def _as_it_is(batch: Any) -> Any:
    return batch


def _end_with_parent(_: int) -> None:
    """End this process when the one that reads from it is gone, killed perhaps: torch looks for another parent's
    end, and here that is the fork server, which waits for us."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_wait_for, args=(parent,), daemon=True).start()


def _wait_for(parent: Any) -> None:
    parent.join()
    os._exit(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """What is started begins with one thread, numpy's included."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _nameless_main() -> Iterator[None]:
    """Processes that are started do not run the user's script again, which they have no use for: it may have no guard
    `if __name__ == "__main__"`, or take seconds, as that of Ray's workers does."""
    said = vars(sys.modules["__main__"])
    hidden: dict[str, Any] = {name: said.pop(name) for name in ("__file__", "__spec__") if name in said}
    said["__spec__"] = None
    try:
        yield
    finally:
        said.update(hidden)
