"""Text from a model, token by token: greedy or sampled, with a drafter that guesses ahead and is always checked.

    logits → token        temperature 0: argmax; else one draw from softmax(logits / temperature), cut by top-k, then top-p

Drafting changes speed, never the text. In one call the trunk extends the text by what it does not hold yet and by the
drafts, and so says at every place which token comes next: the token is chosen from the trunk's logits with the same
draws as without drafting, and a draft counts only if it is that token (Leviathan et al., arXiv 2211.17192, for a drafter
that is certain of its guess). Greedy or sampled, the tokens are those of decoding without drafts, up to rounding of the
logits: matrix products of other sizes may sum in another order.

States are never changed in place, so what was rejected needs no undoing: the state after the drafts is not taken up.
The accepted tokens then stand before the next drafts in the next call, until `MAX_UNSETTLED` have gathered.

Legend: T tokens, d hidden, W vocabulary, K depths of MTP.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lanewise.errors import UsageError
from lanewise.models.model import HybridModel, ModelState
from lanewise.models.mtp import MtpState, MultiTokenPrediction

MAX_UNSETTLED = 8
"""Known tokens that may be computed again with the next drafts before the state takes them in."""


class Sampling(NamedTuple):
    """How a token is chosen from logits.

    Attributes:
        temperature: divides the logits; 0 takes the largest and draws nothing.
        top_k: how many of the largest logits stay; None keeps all.
        top_p: the likeliest tokens stay until they hold this much probability, at least one; 1 keeps all.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0


GREEDY = Sampling()


class Drafter(Protocol):
    """Guesses the next tokens of one text."""

    def draft(self, tokens: Sequence[int], hidden: Tensor, count: int) -> list[int]:
        """Guess what follows `tokens`.

        Args:
            tokens: all tokens of the text so far.
            hidden: the trunk's final hidden states [1, n, d] of the tokens that were new to it; over all calls, every
                token but the last of `tokens` has come by once.
            count: most tokens that are wanted; may be 0.
        """


class Decoder:
    """Decodes one text at a time.

    Args:
        model: in evaluation mode; all its blocks must have `extend`.
        sampling: how a token is chosen.
        generator: source of the draws, on the CPU; needed unless the temperature is 0.
        num_ids: only ids below it are chosen, for a tokenizer smaller than the vocabulary; None allows all.

    Attributes:
        num_drafted: drafts that were checked so far.
        num_accepted: of these, the ones that were right.
        num_calls: times the trunk ran.

    Raises:
        ValueError: a sampling setting is out of range, or there is no generator to draw from.
    """

    def __init__(
        self,
        model: HybridModel,
        *,
        sampling: Sampling = GREEDY,
        generator: torch.Generator | None = None,
        num_ids: int | None = None,
    ) -> None:
        _check(sampling, generator)
        self._model = model
        self._sampling = sampling
        self._generator = generator
        self._num_ids = num_ids
        self.num_drafted = 0
        self.num_accepted = 0
        self.num_calls = 0

    @torch.no_grad()
    def generate(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        stop_id: int | None = None,
        drafter: Drafter | None = None,
    ) -> Iterator[int]:
        """Yield the tokens after the prompt, as soon as each is known.

        Args:
            prompt: token ids, at least one.
            max_new_tokens: most tokens to yield.
            stop_id: ends the text and is not yielded; None goes on to the end.
            drafter: new for every text; None drafts nothing.

        Raises:
            ValueError: the prompt is empty.
            UsageError: the logits are not finite.
        """
        if not prompt:
            raise ValueError("generation needs at least one token to start from")
        text, state, num_settled = list(prompt), None, 0
        drafts: list[int] = []
        seen = 0  # tokens whose hidden states the drafter has been given
        left = max_new_tokens
        while left > 0:
            hidden, after = self._extend([*text[num_settled:], *drafts], state)
            new: list[int] = []
            for token in self._choose_each(hidden[:, -1 - len(drafts) :], drafts):
                if token == stop_id:
                    return
                new.append(token)
                left -= 1
                yield token
                if left == 0:
                    return
            start, accepted = num_settled, len(new) - 1
            if accepted == len(drafts):
                state, num_settled = after, len(text) + accepted
            known = hidden[:, seen - start : len(text) + accepted - start]
            seen = len(text) + accepted
            text += new
            if len(text) - num_settled > MAX_UNSETTLED:
                _, state = self._extend(text[num_settled:-1], state)
                num_settled = len(text) - 1
            # The last token needs no draft after it.
            drafts = drafter.draft(text, known, left - 1) if drafter is not None else []

    def _extend(self, tokens: Sequence[int], state: ModelState | None) -> tuple[Tensor, ModelState]:
        self.num_calls += 1
        device = self._model.embedding.device
        return self._model.extend(torch.tensor([tokens], device=device), state)

    def _choose_each(self, hidden: Tensor, drafts: Sequence[int]) -> Iterator[int]:
        """The token after each place, up to and including the first that was not drafted."""
        logits = self._model.logits(hidden)[0, :, : self._num_ids]
        if not logits.isfinite().all():
            raise UsageError(
                "the model's logits are not finite, so no token can be chosen; its training diverged, use an earlier "
                "checkpoint"
            )
        for place in range(len(drafts) + 1):
            token = choose(logits[place], self._sampling, self._generator)
            is_right = place < len(drafts) and token == drafts[place]
            if place < len(drafts):
                self.num_drafted += 1
                self.num_accepted += is_right
            yield token
            if not is_right:
                return


class MtpDrafter:
    """Drafts with the MTP depths of the model: depth j guesses the j-th token after the last one.

    Every depth decodes with a state of its own over the positions it can know: depth j stands at t once x[t+j] is known.
    The guesses themselves are made on states that are thrown away.

    Args:
        model: with MTP.

    Raises:
        ValueError: the model has none.
    """

    def __init__(self, model: HybridModel) -> None:
        if model.mtp is None:
            raise ValueError("the model has no MTP depths to draft with")
        self._model = model
        self._mtp: MultiTokenPrediction = model.mtp
        num_depths = self._mtp.num_depths
        self._states: list[MtpState | None] = [None] * num_depths
        # h^{j−1} of the positions that depth j has not taken in, [1, n, d] or None.
        self._waiting: list[Tensor | None] = [None] * num_depths

    def draft(self, tokens: Sequence[int], hidden: Tensor, count: int) -> list[int]:
        """Take in what is known, then guess up to `count` tokens, at most K."""
        newest = self._take_in(tokens, hidden)
        drafts: list[int] = []
        guessed: Tensor | None = None  # h^{j−1} of positions that rest on guesses
        for j in range(1, min(count, self._mtp.num_depths) + 1):
            if j > 1:
                inputs = _joined(self._waiting[j - 1], guessed)
                embedded = self._embed([*tokens, *drafts], last=inputs.shape[1])
                newest, _ = self._mtp.depths[j - 1].extend(inputs, embedded, self._states[j - 1])
                guessed = newest
            drafts.append(int(self._model.logits(newest[:, -1]).argmax()))
        return drafts

    def _take_in(self, tokens: Sequence[int], hidden: Tensor) -> Tensor:
        """Move every depth on to the last position it can know; returns h¹ of the newest ones."""
        newest = first = hidden
        for index, depth in enumerate(self._mtp.depths):
            waiting = _joined(self._waiting[index], newest)
            # Depth 1 knows the token after each of its positions; a later depth waits for one more token than the last.
            known, self._waiting[index] = (
                (waiting, None) if index == 0 else (waiting[:, :-1], waiting[:, -1:])
            )
            if known.shape[1] == 0:
                break
            embedded = self._embed(tokens, last=known.shape[1])
            newest, self._states[index] = depth.extend(known, embedded, self._states[index])
            if index == 0:
                first = newest
        return first

    def _embed(self, tokens: Sequence[int], *, last: int) -> Tensor:
        ids = torch.tensor([tokens], device=self._model.embedding.device)
        return self._model.embed(ids, last=last)


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator | None) -> int:
    """One token from logits [W].

    Args:
        logits: fp32 [W].
        sampling: how.
        generator: CPU generator; one draw is taken unless the temperature is 0.
    """
    if sampling.temperature == 0:
        return int(logits.argmax())
    ordered, ids = logits.cpu().double().sort(descending=True, stable=True)
    kept = ((ordered - ordered[0]) / sampling.temperature)[: sampling.top_k]
    probabilities = kept.softmax(dim=0)
    # A token stays while those before it hold less than top_p; the first always does.
    reached = probabilities.cumsum(dim=0)
    num_kept = int((reached - probabilities < sampling.top_p).sum())
    draw = torch.rand((), generator=generator, dtype=torch.float64) * reached[num_kept - 1]
    place = int(torch.searchsorted(reached[:num_kept], draw, right=True))
    return int(ids[min(place, num_kept - 1)])


def _check(sampling: Sampling, generator: torch.Generator | None) -> None:
    if sampling.temperature < 0:
        raise ValueError(f"temperature = {sampling.temperature} must be at least 0")
    if sampling.top_k is not None and sampling.top_k < 1:
        raise ValueError(f"top_k = {sampling.top_k} must be at least 1")
    if not 0 < sampling.top_p <= 1:
        raise ValueError(f"top_p = {sampling.top_p} must be above 0 and at most 1")
    if sampling.temperature > 0 and generator is None:
        raise ValueError("sampling needs a generator to draw from; pass one, or temperature 0")


def _joined(first: Tensor | None, second: Tensor | None) -> Tensor:
    parts = [part for part in (first, second) if part is not None]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
