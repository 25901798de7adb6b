"""Who may call next: one account's limits dealt out to callers and jobs, as a pure state machine.

Callers hold two things: a *quota*, the calls that they may have in flight, and *permits*, single calls
with a time to send them. Both are dealt fairly between jobs first, then between a job's callers. A caller
that falls silent loses its quota; its permits stay counted. Nothing here waits, sends or knows of Ray.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Mapping, Sequence

from tunemill.llm.concurrency import Circuit, Concurrency
from tunemill.llm.limiter import Cost, Limiter, Rates, strictest
from tunemill.llm.messages import Ask, Grant, Report, State, Terms
from tunemill.llm.request import LimitHeaders

__all__ = ["Allocator", "Waiter", "fair_split"]

HORIZON_S = 0.2
"""Permits are dealt at most this long before they are due."""
ARREARS_S = 1.0
CALLER_EXPIRES_S = 6.0
PARK_S = 3600.0


@dataclasses.dataclass(slots=True)
class _Caller:
    job: str
    seen: float
    quota: int = 0
    waiting: int = 0
    in_flight: int = 0
    served: float = 0.0

    @property
    def demand(self) -> int:
        return self.waiting + self.in_flight


@dataclasses.dataclass(slots=True)
class Waiter:
    """A question that waits for permits."""

    key: int
    caller: str
    job: str
    costs: list[Cost]
    asked: float
    deadline: float
    granted: list[float] = dataclasses.field(default_factory=list)


class Allocator:
    """The budget of one (provider, account, region, model)."""

    def __init__(self, epoch: str, now: float, *, fresh: bool = True) -> None:
        self.epoch = epoch
        self.limiter = Limiter(Rates(), now)
        self.concurrency: Concurrency | None = None
        self.circuit = Circuit()
        self.terms: dict[str, Terms] = {}
        self._fresh = fresh
        self._callers: dict[str, _Caller] = {}
        self._queues: dict[str, deque[Waiter]] = {}
        self._spent_time: dict[str, float] = {}
        self._stated: dict[str, float] = {}
        self._keys = 0

    @property
    def idle(self) -> bool:
        """True when no caller is known."""
        return not self._callers

    def join(self, job: str, caller: str, terms: Terms, now: float) -> None:
        """Make a caller known, with the limits that its job states."""
        self._callers[caller] = _Caller(job=job, seen=now)
        self.terms[job] = terms
        self._apply_terms(now)
        if not self._fresh:
            self.limiter.assume_used(now)
            self._fresh = True

    def leave(self, caller: str, now: float) -> None:
        """Forget a caller; its quota is free at once."""
        gone = self._callers.pop(caller, None)
        if gone is not None and all(other.job != gone.job for other in self._callers.values()):
            self.terms.pop(gone.job, None)
            self._apply_terms(now)

    def end_job(self, job: str, now: float) -> None:
        """Forget all callers of a job."""
        for caller in [name for name, state in self._callers.items() if state.job == job]:
            self.leave(caller, now)

    def expire(self, now: float) -> None:
        """Forget the callers that have been silent for too long."""
        for caller in [name for name, state in self._callers.items() if now - state.seen > CALLER_EXPIRES_S]:
            self.leave(caller, now)

    def note(self, report: Report, now: float) -> bool:
        """Take in what happened at a caller; False when the caller is not known and has to join."""
        caller = self._callers.get(report.caller)
        if caller is None:
            return False
        caller.seen, caller.waiting, caller.in_flight = now, report.waiting, report.in_flight
        caller.served += report.in_flight
        if report.epoch == self.epoch:
            for at, r_in, r_out, a_in, a_out in report.settled:
                self.limiter.settle(at, Cost(r_in, r_out), Cost(a_in, a_out))
            for at, r_in, r_out in report.cancelled:
                self.limiter.cancel(at, Cost(r_in, r_out))
        self._note_outcomes(report, now)
        if report.headers is not None:
            self._note_headers(report.headers, now)
        return True

    def quota(self, name: str, now: float) -> int:
        """The calls that a caller may have in flight from now on; remembered as given."""
        shares = self._shares(now)
        held = sum(max(other.quota, other.in_flight) for key, other in self._callers.items() if key != name)
        mine = self._callers[name]
        mine.quota = max(0, min(shares[name], self._capacity(now) - held))
        return mine.quota

    def wait(self, ask: Ask, now: float, patience_s: float) -> Waiter:
        """Queue a question for permits."""
        job = ask.report.job
        if not self._queues.get(job):
            # between two questions a job may be behind a little; one that was away does not get what it missed
            others = [self._spent_time.get(name, 0.0) for name, queue in self._queues.items() if queue and name != job]
            least = min(others, default=0.0) - ARREARS_S / self.limiter.rates.window_s
            self._spent_time[job] = max(self._spent_time.get(job, 0.0), least)
        self._keys += 1
        costs = [Cost(i, o) for i, o in ask.costs]
        waiter = Waiter(self._keys, ask.report.caller, job, costs, now, now + patience_s)
        self._queues.setdefault(job, deque()).append(waiter)
        return waiter

    def deal(self, now: float) -> tuple[list[Waiter], float | None]:
        """Deal the permits that are due within the horizon.

        Returns the questions that are answered (with permits, or out of patience) and the time at which
        to deal again (None: when something changes).
        """
        wake: float | None = None
        while (queue := self._neediest()) is not None:
            waiter = queue[0]
            cost = waiter.costs[len(waiter.granted)]
            at = self.limiter.ready_at(cost, now)
            if at > now + HORIZON_S:
                wake = at - HORIZON_S / 4
                break
            self.limiter.take(cost, at)
            waiter.granted.append(at)
            self._spent_time[waiter.job] += self._share_of(cost)
            queue.rotate(-1)
        done = [w for queue in self._queues.values() for w in queue if w.granted or w.deadline <= now]
        for waiter in done:
            self._queues[waiter.job].remove(waiter)
        deadlines = [w.deadline for queue in self._queues.values() for w in queue]
        times = [*deadlines, *([wake] if wake is not None else [])]
        return done, min(times, default=None) if times else None

    def withdraw(self, waiter: Waiter) -> None:
        """Take back a question whose caller is gone."""
        if waiter in self._queues.get(waiter.job, ()):
            self._queues[waiter.job].remove(waiter)

    def grant(self, caller: str, now: float, waiter: Waiter | None = None) -> Grant:
        """The answer to a caller."""
        state: State = "parked" if self.limiter.parked_until > now else "dead" if self.circuit.dead else "open"
        return Grant(
            state=state,
            epoch=self.epoch,
            quota=self.quota(caller, now) if caller in self._callers else 0,
            limited=self.limiter.limited,
            permits=tuple((max(at - now, 0.0), at) for at in waiter.granted) if waiter else (),
            held_s=now - waiter.asked if waiter else 0.0,
            wait_s=max(0.0, self.limiter.parked_until - now),
        )

    def _note_outcomes(self, report: Report, now: float) -> None:
        """A report does not say in which order things came: failures among answers are no row of them, and throttled calls
        lie evenly between the answers."""
        for number in range(report.failed + report.overloaded):
            self.circuit.failed(now, answered=number >= report.failed)
        if report.answered or report.throttled:
            self.circuit.succeeded()
        if report.answered and self.concurrency is not None:
            in_flight = sum(state.in_flight for state in self._callers.values()) - report.in_flight + report.peak
            self.concurrency.answered(now, report.answered, report.latency_s, in_flight)
        between = min(report.answered, 200) // (len(report.throttled) + 1)
        self._note_answers(between, now)
        for age_s, hint in report.throttled:
            if self.limiter.throttled(now, now - age_s, hint) and self.concurrency is not None:
                self.concurrency.throttled(now, now - age_s)
            self._note_answers(between, now)
        if report.day_quota_s is not None:
            self.limiter.park(now + (report.day_quota_s or PARK_S))

    def _note_answers(self, count: int, now: float) -> None:
        for _ in range(count):
            self.limiter.answered(now)

    def _note_headers(self, headers: LimitHeaders, now: float) -> None:
        for dimension in ("requests", "tokens", "input_tokens", "output_tokens"):
            window = getattr(headers, dimension)
            if window is None:
                continue
            if window.limit is not None and window.limit > 0 and self._stated.get(dimension) != window.limit:
                self._stated[dimension] = window.limit
                self._apply_terms(now)
            if window.remaining is not None and window.remaining <= 0 and window.reset_s is not None:
                one_s = window.reset_s / window.limit if window.limit else min(window.reset_s, 1.0)
                self.limiter.hold(dimension, now + one_s)

    def _apply_terms(self, now: float) -> None:
        if not self.terms:
            return
        rates = strictest(terms.rates for terms in self.terms.values())
        stated = Rates(**self._stated, window_s=rates.window_s)
        self.limiter.set_rates(strictest([rates, stated]), now)
        most = min(terms.concurrency for terms in self.terms.values())
        if self.concurrency is None:
            self.concurrency = Concurrency(most)
        self.concurrency.set_most(most)

    def _capacity(self, now: float) -> int:
        if self.circuit.open_until > now:
            return 0
        return 1 if self.circuit.probing or self.concurrency is None else self.concurrency.allowed

    def _shares(self, now: float) -> dict[str, int]:
        """Fair shares of the capacity: what is wanted first, then the rest evenly, so that bursts need not ask."""
        capacity = self._capacity(now)
        jobs: dict[str, list[str]] = {}
        for name, caller in self._callers.items():
            jobs.setdefault(caller.job, []).append(name)
        ordered = sorted(jobs, key=lambda job: min(self._callers[name].served for name in jobs[job]))
        wanted = [sum(self._callers[name].demand for name in jobs[job]) for job in ordered]
        shares: dict[str, int] = {}
        for job, part in zip(ordered, fair_split(capacity, wanted), strict=True):
            names = sorted(jobs[job], key=lambda name: self._callers[name].served)
            split = fair_split(part, [self._callers[name].demand for name in names])
            shares.update(zip(names, split, strict=True))
        rest = capacity - sum(shares.values())
        if rest > 0:
            for name, more in zip(shares, fair_split(rest, [rest] * len(shares)), strict=True):
                shares[name] += more
        return shares

    def _neediest(self) -> deque[Waiter] | None:
        """The queue of the job that has had least, if any waits for permits."""
        for job in sorted((job for job, queue in self._queues.items() if queue), key=lambda job: self._spent_time[job]):
            queue = self._queues[job]
            for _ in range(len(queue)):
                if len(queue[0].granted) < len(queue[0].costs):
                    return queue
                queue.rotate(-1)
        return None

    def _share_of(self, cost: Cost) -> float:
        rates = self.limiter.rates
        limits = {
            "requests": rates.requests,
            "tokens": rates.tokens,
            "input_tokens": rates.input_tokens,
            "output_tokens": rates.output_tokens,
        }
        return max((_amount(cost, name) / limit for name, limit in limits.items() if limit), default=0.0)


def fair_split(capacity: int, wanted: Sequence[int]) -> list[int]:
    """Max-min fair whole shares: nobody gets more than wanted, nobody less than an even share of what is left.

    Where there is less than one for each, the first in order get it.
    """
    shares = [0] * len(wanted)
    left = capacity
    open_ = [i for i, want in enumerate(wanted) if want > 0]
    while open_ and left > 0:
        each = left // len(open_)
        if each == 0:
            for i in open_[:left]:
                shares[i] += 1
            break
        for i in open_:
            more = min(each, wanted[i] - shares[i])
            shares[i] += more
            left -= more
        open_ = [i for i in open_ if shares[i] < wanted[i]]
    return shares


def _amount(cost: Cost, name: str) -> float:
    amounts: Mapping[str, float] = {
        "requests": 1.0,
        "tokens": cost.input_tokens + cost.output_tokens,
        "input_tokens": cost.input_tokens,
        "output_tokens": cost.output_tokens,
    }
    return amounts[name]
