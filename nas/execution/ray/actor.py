"""A worker that is a Ray actor, and its driver's view of it."""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from nas.cache import cache_root
from nas.execution.executor import Attempt, Event, Failed, Progress, Result
from nas.execution.mirror import Parcel, Receiver, Sender, Tail, append
from nas.execution.process import as_message
from nas.execution.ray.cluster import Needs, done
from nas.execution.ray.place import Place, settled


@ray.remote(max_concurrency=3)
class Actor:
    """A worker: `run` in one thread, `news` in another, `leave` in a third."""

    def __init__(self) -> None:
        from nas.execution.worker import run_attempt  # noqa: PLC0415  (in the actor's process)

        self._run_attempt = run_attempt
        self._messages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def where(self, token: Path | None) -> Place:
        """Where it is; `token` is a file that only who sees the files of its driver can read."""
        return settled(token)

    def run(self, attempt: dict[str, Any]) -> None:
        self._run_attempt(attempt, self._messages.put, lambda: None)

    def run_elsewhere(self, parcel: Parcel) -> None:
        """Run an attempt of a driver whose files are not seen here; what it prints and writes comes with its messages."""
        key = parcel.attempt["key"]

        def beat() -> None:
            self._messages.put({"event": "progress", "key": key, "seconds": 0.0, "data": {}})

        receiver = Receiver(cache_root() / "elsewhere", ray.get, beat)
        try:
            attempt = receiver.accept(parcel)
        except OSError as error:
            self._messages.put({"event": "failed", "key": key, "seconds": 0.0, "reason": f"OSError: {error}", "detail": ""})
            return
        printed = Tail(Path(attempt["log"])) if attempt["log"] else None

        def send(message: dict[str, Any]) -> None:
            told = receiver.restored(message)
            if told["event"] in {"result", "failed"}:
                told["files"] = receiver.returned(parcel.attempt["payload"])
            self._messages.put({**told, "printed": printed.more() if printed else ""})

        self._run_attempt(attempt, send, lambda: None)

    def news(self) -> list[dict[str, Any]]:
        """The messages since the last call; waits for the first."""
        return [self._messages.get(), *(self._messages.get_nowait() for _ in range(self._messages.qsize()))]

    def leave(self) -> None:
        """End at once, whatever runs: needs no head."""
        os._exit(0)


class Slot:
    """One actor as the driver sees it. It has a `node` once it is up."""

    def __init__(self, needs: Needs, environment: Mapping[str, str], token: Path | None, sender: Sender) -> None:
        # Ray itself shows each actor its own GPUs.
        variables = {k: v for k, v in environment.items() if k != "CUDA_VISIBLE_DEVICES"}
        actor: Any = Actor
        options = {"num_cpus": needs.cores, "num_gpus": needs.gpus, "runtime_env": {"env_vars": variables}}
        self.handle = actor.options(**options).remote()
        self._where: Any = self.handle.where.remote(token)
        self.place: Place | None = None
        self._sender = sender
        self.attempt: Attempt | None = None
        self._run: Any = None
        self._news: Any = None
        self._began = 0.0

    @property
    def up(self) -> bool:
        return self.place is not None

    @property
    def node(self) -> str | None:
        return self.place.node if self.place else None

    @property
    def pending(self) -> list[Any]:
        """What the driver may wait for."""
        return [call for call in (self._where, self._run, self._news) if call is not None]

    @property
    def seconds(self) -> float:
        """How long the present attempt has run."""
        return time.monotonic() - self._began if self.attempt else 0.0

    def start(self, attempt: Attempt) -> None:
        """Raises InputError where an attempt's dataset is gone, before it is sent to another host."""
        if self.place is None or self.place.sees:
            self._run = self.handle.run.remote(as_message(attempt))
        else:
            self._run = self.handle.run_elsewhere.remote(self._sender.parcel(attempt, self.place.node))
        self.attempt, self._began, self._news = attempt, time.monotonic(), self.handle.news.remote()

    def rises(self) -> bool:
        """Whether it has just come up. Raises RayError when it never will."""
        if self.up or not done(self._where):
            return False
        self.place = ray.get(self._where)
        self._where = None
        return True

    def events(self) -> list[Event]:
        """What its attempt has told since the last call. Raises RayError when it has died."""
        if self.attempt is None:
            return []
        if not done(self._news):
            if done(self._run):
                ray.get(self._run)  # raises if it ended without a last message
            return []
        messages = ray.get(self._news)
        for message in messages:
            self._bring(self.attempt, message)
        events = [event for message in messages if (event := _as_event(self.attempt, message))]
        if messages[-1]["event"] in {"result", "failed"}:
            self.attempt = self._run = self._news = None
        else:
            self._news = self.handle.news.remote()
        return events

    def _bring(self, attempt: Attempt, message: Mapping[str, Any]) -> None:
        """What comes with a message from a host that does not see this one's files."""
        if attempt.log and message.get("printed"):
            append(Path(attempt.log), message["printed"])
        if self.place and message.get("files"):
            self._sender.deliver(attempt, self.place.node, message["files"])

    def kill(self, headless: bool = False) -> None:
        """End it, if it does not stand still; `headless` where the cluster has nobody left who would."""
        if headless:
            self.handle.leave.remote()
        ray.kill(self.handle)


def _as_event(attempt: Attempt, message: Mapping[str, Any]) -> Event | None:
    if message["event"] == "progress":
        return Progress(attempt.key, message["data"], message["seconds"])
    if message["event"] == "result":
        return Result(attempt.key, message["data"], message["seconds"])
    if message["event"] == "failed":
        return Failed(attempt.key, message["reason"], message["seconds"], message["detail"])
    return None  # it asked for quiet, which only the lane gives
