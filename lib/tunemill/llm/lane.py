"""One model as one caller calls it: its gate, its connections, and what has been learnt of its token use."""

from __future__ import annotations

import dataclasses
import time
from typing import Literal

from tunemill.llm.config import ModelConfig
from tunemill.llm.gate import BudgetClient, Gate, Permit
from tunemill.llm.ledger import Tally
from tunemill.llm.limiter import Cost, Rates
from tunemill.llm.messages import Terms
from tunemill.llm.pricing import cost_usd, estimate_input_tokens, most_usd
from tunemill.llm.providers import provider_for
from tunemill.llm.request import Answer, Failure, LimitHeaders, Prompt, Provider, WireRequest, WireResponse
from tunemill.llm.send import Sender

__all__ = ["Lane", "Request", "billed_usd", "stop_message"]

_WEIGHT = 0.05
"""Of the latest answer in the running means."""
_HEADERS_S = 0.1


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """One request to one model, ready to be sent."""

    lane: Lane
    key: str
    wire: WireRequest
    estimate: int
    """Input tokens, estimated."""
    most_usd: float
    """The highest price that a call can have."""
    order: int
    """Older requests go first."""


class Lane:
    """Calls one model; used on one event loop."""

    def __init__(self, model: ModelConfig, budget: BudgetClient, job: str, caller: str) -> None:
        self.model = model
        self.provider: Provider = provider_for(model.provider, model.task)
        # Azure counts requests over one second or ten
        rates = Rates.of(model.limits, pace_s=1.0 if model.provider == "azure" else None)
        self.gate = Gate(budget, job, caller, Terms(rates, model.limits.concurrency))
        self.sender = Sender(model, model.limits.concurrency)
        self._input_ratio = 1.0
        self._output_mean: float | None = None
        self._headers_read = 0.0

    def request(self, key: str, wire: WireRequest, prompt: Prompt, order: int) -> Request:
        """A request with what it takes and may cost."""
        return Request(self, key, wire, estimate_input_tokens(prompt), most_usd(self.model, prompt), order)

    def reserve(self, estimate: int) -> Cost:
        """What the provider takes from the limits at the start of a call."""
        weight = self.provider.output_weight(self.model)
        if self.model.task == "embed":
            output = 0.0
        elif self.provider.reserves_output or self._output_mean is None:
            output = float(self.model.params.max_tokens)
        else:
            output = self._output_mean * weight
        return Cost(estimate * self._input_ratio, output)

    def end(
        self, permit: Permit, response: WireResponse | Failure, latency_s: float, estimate: int, tally: Tally
    ) -> Answer | Failure:
        """Read a response, free its place, tell the gate, count it."""
        tally.calls += 1
        if isinstance(response, Failure):
            tally.failures += 1
            self.gate.end(permit, latency_s, None, response, None)
            return response
        outcome = self.provider.read(response.status, response.headers, response.body)
        tally.input_tokens += outcome.input_tokens
        tally.output_tokens += outcome.output_tokens
        failure = outcome if isinstance(outcome, Failure) else None
        real: Cost | None = None
        if failure is None:
            tally.answers += 1
            real = self._learn(outcome.input_tokens, outcome.output_tokens, estimate)
        elif failure.kind == "throttled":
            tally.throttled += 1
            real = Cost()
        else:
            tally.failures += 1
        self.gate.end(permit, latency_s, real, failure, self._limits(response, failure))
        return outcome

    def _limits(self, response: WireResponse, failure: Failure | None) -> LimitHeaders | None:
        """What the headers say about limits, read often enough."""
        now = time.monotonic()
        if failure is None and now - self._headers_read < _HEADERS_S:
            return None
        self._headers_read = now
        return self.provider.limits(response.headers)

    def _learn(self, input_tokens: int, output_tokens: int, estimate: int) -> Cost:
        self._input_ratio += _WEIGHT * (input_tokens / max(estimate, 1) - self._input_ratio)
        before = self._output_mean if self._output_mean is not None else float(output_tokens)
        self._output_mean = before + _WEIGHT * (output_tokens - before)
        return Cost(input_tokens, output_tokens * self.provider.output_weight(self.model))

    async def close(self) -> None:
        """Leave the budget and close the connections."""
        await self.gate.close()
        await self.sender.close()


def billed_usd(request: Request, outcome: Answer | Failure) -> float:
    """USD of a call; its highest price where it may have been billed and nobody says how much."""
    if isinstance(outcome, Answer) or outcome.input_tokens or outcome.output_tokens:
        return cost_usd(request.lane.model, outcome.input_tokens, outcome.output_tokens)
    unknown: tuple[Literal["timeout", "bad_answer"], ...] = ("timeout", "bad_answer")
    return request.most_usd if outcome.kind in unknown and outcome.status in (None, 200, 408, 504) else 0.0


def stop_message(model: ModelConfig, failure: Failure) -> str:
    """One line for a failure that every further call would share: what, where, and what to do."""
    where = f"models.{model.name}: {model.base_url or model.provider}"
    if failure.kind == "auth":
        return f"{where} refused the key ({failure.message}); check {model.api_key_env or 'its key'}"
    if failure.kind == "not_found":
        return f"{where} has no {model.model!r} ({failure.message}); check model and base_url"
    if failure.kind == "no_credit":
        return f"{where} asks for payment ({failure.message}); top the account up and run the same command again"
    return f"{where} can not be reached ({failure.message}); check base_url and that the server runs"
