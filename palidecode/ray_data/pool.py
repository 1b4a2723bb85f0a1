"""Actors that share the shards of a run, on a cluster that may lose and gain machines.

Nothing is restarted in place: the shards of an actor that is lost go to the others, and another
actor is asked for. An actor that finds no room waits, and nothing waits for it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import RayError, RayTaskError

from palidecode.errors import PalidecodeError
from palidecode.ray_data.actor import Actor, Done
from palidecode.ray_data.cluster import Workers
from palidecode.ray_data.sharing import Shares
from palidecode.ray_data.sources import Part

_QUEUE = 2  # shards of an actor: one that it works on, one that waits
_DEATHS = 3  # actors that a shard may cost
_STARTS = 10  # actors in a row that may die before they are ready
_SECOND = 1.0
_LOOK = 2.0  # seconds between two looks at the cluster
_SILENCE = 60.0  # seconds without a result after which an idle actor does another's shards, too
_MACHINE_DIED = "node has died"


@dataclass(eq=False)
class _Shard:
    number: int
    parts: ObjectRef[Any]
    deaths: int = 0
    doubled: bool = False


@dataclass(eq=False)
class _Member:
    actor: Any
    cpus: float
    ready: bool = False
    tasks: dict[ObjectRef[Any], _Shard] = field(default_factory=dict)  # in order


class Pool:
    """Actors and the shards that they work on, within its ``with`` block.

    Parameters
    ----------
    given : tuple
        Arguments of each `Actor`.
    workers : Workers
    shares : Shares
        Closed at the end.
    describe : callable
        Names the first and the last row of a shard.
    spare : bool
        Tasks of Ray read the rows, so actors leave a CPU free.
    """

    def __init__(
        self,
        given: tuple[object, ...],
        workers: Workers,
        shares: Shares,
        describe: Callable[[Sequence[Part]], str],
        *,
        spare: bool,
    ) -> None:
        self._workers, self._shares = workers, shares
        self._describe, self._spare = describe, spare
        self._actor, self._given = ray.remote(Actor), given
        self._members: list[_Member] = []
        self._owner: dict[ObjectRef[Any], _Member] = {}  # of everything that is waited for
        self._again: deque[_Shard] = deque()
        self._number, self._fitting = 0, 1
        self._failed_starts = 0
        self._heard = time.monotonic()  # of the last result
        self._finished: set[int] = set()  # numbers of shards that were doubled

    def __enter__(self) -> Pool:
        self._workers.note(spare=self._spare)
        return self

    def __exit__(self, *problem: object) -> None:
        self._shares.close()
        for member in list(self._members):
            self._dismiss(member)

    def results(
        self, busy: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[int, Done] | None]:
        """Yield shards' numbers and reports as they are done; None about once a second.

        With `busy` nothing is waited for: None comes where no report is there yet.

        Raises
        ------
        PalidecodeError
            If a shard kills its actors, or no actor starts.
        """
        looked = 0.0
        while self._left() or any(member.tasks for member in self._members):
            if time.monotonic() - looked > _LOOK:
                self._resize()
                looked = time.monotonic()
            # Each gets its first shard before any gets its second.
            for member in sorted(self._members, key=lambda member: len(member.tasks)):
                if member.ready and len(member.tasks) < _QUEUE:
                    shard = self._next()
                    if shard is None:
                        break
                    self._hand(member, shard)
            self._double()
            yield self._wait(0.0 if busy() else _SECOND)

    def _hand(self, member: _Member, shard: _Shard) -> None:
        task = member.actor.write.remote(shard.parts)
        member.tasks[task] = shard
        self._owner[task] = member

    def _double(self) -> None:
        """After a long silence give the last shards to an idle actor, too.

        The answer of a machine whose cable was out may never come, and Ray doesn't say so. The
        shards of slow actors are done twice, which changes nothing: the first report counts.
        """
        if self._left() or time.monotonic() - self._heard < _SILENCE:
            return
        held = [shard for one in self._members for shard in one.tasks.values()]
        late = [shard for shard in held if not shard.doubled][:_QUEUE]
        for idle in [one for one in self._members if one.ready and not one.tasks][:1]:
            for shard in late:
                shard.doubled = True
                self._hand(idle, shard)

    def _left(self) -> bool:
        return bool(self._again) or not self._shares.ended

    def _next(self) -> _Shard | None:
        while self._again:
            shard = self._again.popleft()
            if shard.number not in self._finished:
                return shard
        parts = self._shares.take(self._fitting)
        if parts is None:
            return None
        self._number += 1
        return _Shard(self._number - 1, ray.put(parts))

    def _wait(self, seconds: float) -> tuple[int, Done] | None:
        done, _ = ray.wait(list(self._owner), timeout=seconds) if self._owner else ([], [])
        if not done:
            return None
        member = self._owner.pop(done[0])
        try:
            value = ray.get(done[0])
        except RayTaskError:
            raise
        except RayError as error:
            self._lost(member, error)
            return None
        if not member.ready:
            member.ready, self._failed_starts = True, 0
            return None
        shard, self._heard = member.tasks.pop(done[0]), time.monotonic()
        if shard.doubled:
            if shard.number in self._finished:
                return None
            self._finished.add(shard.number)
            for other in [one for one in self._members if shard in one.tasks.values()]:
                other.tasks = {ref: held for ref, held in other.tasks.items() if held is not shard}
                self._dismiss(other)
        return shard.number, value

    def _lost(self, member: _Member, error: RayError) -> None:
        """Give the shards of a lost actor to the others; one that killed it too often is named."""
        if getattr(error, "actor_init_failed", False):
            raise error
        self._dismiss(member)
        if _MACHINE_DIED in str(error):
            return
        if not member.ready:
            self._failed_starts += 1
            if self._failed_starts >= _STARTS:
                raise error
        for shard in list(member.tasks.values())[:1]:  # the one that it was working on
            shard.deaths += 1
            if shard.deaths >= _DEATHS:
                rows = self._describe(ray.get(shard.parts))
                raise PalidecodeError(
                    f"something from {rows} killed its worker {_DEATHS} times; find it with a "
                    "smaller shard size, and take it out"
                )

    def _resize(self) -> None:
        number = self._workers.number(spare=self._spare)
        cpus = self._workers.share(spare=self._spare)
        self._fitting = max(1, min(number, self._workers.fitting(0.0)))
        if self._spare:  # otherwise those that find no room are in nobody's way
            least = sorted(self._members, key=lambda member: (member.ready, len(member.tasks)))
            surplus = least[: max(0, len(least) - number)]
            for member in self._members.copy():
                if member in surplus or member.cpus > cpus:
                    self._dismiss(member)
        while len(self._members) < number:
            options = self._workers.remote_args(cpus)
            member = _Member(self._actor.options(**options).remote(*self._given), cpus)
            self._members.append(member)
            self._owner[member.actor.ready.remote()] = member

    def _dismiss(self, member: _Member) -> None:
        self._members.remove(member)
        self._owner = {ref: owner for ref, owner in self._owner.items() if owner is not member}
        self._again.extendleft(reversed(member.tasks.values()))
        ray.kill(member.actor)
