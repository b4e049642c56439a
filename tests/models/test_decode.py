"""Decoding against the parallel forward, and drafting against decoding without drafts."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lanewise.errors import UsageError
from lanewise.models.decode import GREEDY, MAX_UNSETTLED, Decoder, MtpDrafter, Sampling, choose
from lanewise.models.layers import Context
from lanewise.models.model import HybridModel
from tests.models.micro import micro_lane, micro_model, random_batch

PROMPT = [256, 7, 100, 3, 3, 80]
SPARSE = {
    "top_k": 3,
    "index_num_heads": 2,
    "index_head_dim": 4,
    "layer_ranks": [1, 2],
    "full_ranks": [0],
}


def hybrid(
    pattern: str = "AGDEMRA", *, depth: int = 0, seed: int = 2, **changes: Any
) -> HybridModel:
    """Any pattern with weights so large that the greedy text wanders and every token matters."""
    if depth:
        changes["model__mtp"] = {"depth": depth, "mlp_hidden_size": 7} | changes.pop("mtp", {})
    lane = micro_lane(model__pattern=pattern, model__num_layers=len(pattern), **changes)
    model = micro_model(lane, switches={"mtp": depth > 0}, seed=seed).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model


def write(model: HybridModel, count: int = 24, **options: Any) -> list[int]:
    generate = {k: options.pop(k) for k in ("drafter", "stop_id", "prompt") if k in options}
    decoder = Decoder(model, **options)
    return list(decoder.generate(generate.pop("prompt", PROMPT), max_new_tokens=count, **generate))


def by_the_parallel_forward(model: HybridModel, count: int) -> list[int]:
    """Greedy continuation, each token from a forward over the whole text."""
    text = list(PROMPT)
    with torch.no_grad():
        for _ in range(count):
            hidden = model.trunk(torch.tensor([text])).hidden
            text.append(int(model.logits(hidden)[0, -1].argmax()))
    return text[len(PROMPT) :]


PATTERNS = ["A", "G", "D", "E", "M", "R", "AGDEMRA"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_greedy_decoding_is_the_parallel_forward(pattern: str) -> None:
    model = hybrid(pattern)
    expected = by_the_parallel_forward(model, 12)
    assert len(set(expected)) > 2
    assert write(model, 12) == expected


def test_sparse_layers_decode_with_the_keys_of_the_layer_that_chose_them() -> None:
    model = hybrid("AAEA", model__attention__sparse=SPARSE)
    assert write(model, 12) == by_the_parallel_forward(model, 12)


@pytest.mark.parametrize("pieces", [(1,) * 10, (3, 1, 4, 2), (10,), (9, 1)])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_model_extends_in_any_pieces_as_it_computes_at_once(
    pattern: str, pieces: tuple[int, ...]
) -> None:
    model = hybrid(pattern)
    tokens, _ = random_batch(micro_lane())
    state, found = None, []
    with torch.no_grad():
        whole = model.trunk(tokens).hidden
        for start, stop in itertools.pairwise((0, *itertools.accumulate(pieces))):
            hidden, state = model.extend(tokens[:, start:stop], state)
            found.append(hidden)
    torch.testing.assert_close(torch.cat(found, dim=1), whole, rtol=1e-6, atol=1e-6)


def test_an_earlier_state_can_be_taken_up_again() -> None:
    model = hybrid()
    with torch.no_grad():
        _, state = model.extend(torch.tensor([PROMPT]))
        first, _ = model.extend(torch.tensor([[5, 6]]), state)
        model.extend(torch.tensor([[9, 9, 9]]), state)
        again, _ = model.extend(torch.tensor([[5, 6]]), state)
    assert torch.equal(first, again)


class Oracle:
    """Knows the text that greedy decoding will write, and is wrong now and then if asked to be."""

    def __init__(self, text: Sequence[int], *, depth: int, wrong_every: int | None = None) -> None:
        self.text = [*PROMPT, *text]
        self.depth = depth
        self.wrong_every = wrong_every
        self.num_hidden = 0

    def draft(self, tokens: Sequence[int], hidden: Tensor, count: int) -> list[int]:
        self.num_hidden += hidden.shape[1]
        assert self.num_hidden == len(tokens) - 1  # every token but the last has come by once
        start = len(tokens)
        drafts = self.text[start : start + min(count, self.depth)]
        if self.wrong_every is None:
            return drafts
        return [
            (token + 1) % 257 if (start + i) % self.wrong_every == 0 else token
            for i, token in enumerate(drafts)
        ]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("wrong_every", [1, 2, 5, None])
def test_drafts_right_or_wrong_never_change_the_text(pattern: str, wrong_every: int | None) -> None:
    model = hybrid(pattern)
    expected = write(model)
    drafter = Oracle(expected, depth=3, wrong_every=wrong_every)
    assert write(model, drafter=drafter) == expected


def test_a_perfect_drafter_is_always_accepted_and_saves_calls() -> None:
    model = hybrid()
    expected = write(model, 25)
    decoder = Decoder(model)
    drafter = Oracle(expected, depth=3)
    found = list(decoder.generate(PROMPT, max_new_tokens=25, drafter=drafter))
    assert found == expected
    assert decoder.num_accepted == decoder.num_drafted == 18
    assert decoder.num_calls == 1 + 24 // 4  # the prompt, then four tokens a call


def test_a_drafter_that_is_always_wrong_costs_few_calls_more() -> None:
    model = hybrid()
    expected = write(model, 33)
    decoder = Decoder(model)
    drafter = Oracle(expected, depth=1, wrong_every=1)
    assert list(decoder.generate(PROMPT, max_new_tokens=33, drafter=drafter)) == expected
    assert decoder.num_accepted == 0
    assert 33 < decoder.num_calls <= 33 + 33 // MAX_UNSETTLED


@pytest.mark.parametrize("sharing", ["shared", "per_depth"])
@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("prompt", [[256], [256, 4], PROMPT], ids=len)
def test_mtp_drafts_never_change_the_text(depth: int, sharing: str, prompt: list[int]) -> None:
    model = hybrid("AG", depth=depth, mtp={"sharing": sharing})
    plain = write(model, prompt=prompt)
    assert write(model, prompt=prompt, drafter=MtpDrafter(model)) == plain


def test_mtp_drafts_never_change_the_text_of_a_hybrid() -> None:
    model = hybrid(depth=2)
    assert write(model, drafter=MtpDrafter(model)) == write(model)


def drafts_by_whole_rows(model: HybridModel, text: list[int], count: int) -> list[int]:
    """What the depths predict behind `text`, by the forward of training over whole rows."""
    assert model.mtp is not None
    known = list(text)
    with torch.no_grad():
        for j in range(1, count + 1):
            hidden = model.trunk(torch.tensor([text])).hidden[:, :-1]
            embedded = model.embed(torch.tensor([known]))
            for i, depth in enumerate(model.mtp.depths[:j], start=1):
                hidden = depth(hidden, embedded[:, i : i + hidden.shape[1]], Context())
            known.append(int(model.logits(hidden[:, -1]).argmax()))
    return known[len(text) :]


@pytest.mark.parametrize("sharing", ["shared", "per_depth"])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_mtp_drafts_are_what_training_would_predict(depth: int, sharing: str) -> None:
    """Over many calls: the states of the depths follow the text whatever was drafted in between."""
    model = hybrid("A", depth=depth, mtp={"sharing": sharing})
    drafter = MtpDrafter(model)
    generator = torch.Generator().manual_seed(1)
    text, state, shown = [256], None, 0
    for grown in (1, 1, 3, 2, 1, 4):
        text += torch.randint(257, (grown,), generator=generator).tolist()
        with torch.no_grad():
            hidden, state = model.extend(torch.tensor([text[shown:-1]]), state)
            shown = len(text) - 1
            assert drafter.draft(text, hidden, depth) == drafts_by_whole_rows(model, text, depth)


def test_a_model_that_learned_a_constant_text_accepts_every_draft() -> None:
    lane = micro_lane(
        model__pattern="A", model__num_layers=1, model__mtp={"depth": 2, "mlp_hidden_size": 7}
    )
    model = micro_model(lane, switches={"mtp": True})
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    tokens = torch.full((2, 10), 42)
    for _ in range(30):
        model(tokens, tokens).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    decoder = Decoder(model.eval())
    drafter = MtpDrafter(model)
    text = list(decoder.generate([42, 42], max_new_tokens=31, drafter=drafter))
    assert text == [42] * 31
    assert decoder.num_accepted == decoder.num_drafted == 20
    assert decoder.num_calls == 11


def test_sampled_text_is_the_same_with_drafts() -> None:
    model = hybrid("AG", depth=2)
    sampling = Sampling(temperature=3.0, top_k=200, top_p=0.99)
    texts = []
    for drafter in (None, MtpDrafter(model)):
        generator = torch.Generator().manual_seed(5)
        texts.append(write(model, sampling=sampling, generator=generator, drafter=drafter))
    assert texts[0] == texts[1]
    other = write(model, sampling=sampling, generator=torch.Generator().manual_seed(6))
    assert other != texts[0]


def test_the_stop_token_ends_the_text_and_is_kept_back() -> None:
    model = hybrid("AG", depth=2)
    text = write(model)
    stop = text[5]
    end = text.index(stop)
    for drafter in (None, MtpDrafter(model), Oracle(text, depth=4)):
        assert write(model, stop_id=stop, drafter=drafter) == text[:end]


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_no_more_tokens_than_wanted(count: int) -> None:
    model = hybrid("A", depth=3)
    assert len(write(model, count, drafter=MtpDrafter(model))) == count


def test_ids_the_tokenizer_does_not_have_are_never_chosen() -> None:
    model = hybrid("A")
    with torch.no_grad():
        model.head[200:] *= 100
    assert max(write(model)) >= 200
    assert max(write(model, num_ids=200)) < 200


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([0.1, 0.4, 0.3, 0.2]).log()
    generator = torch.Generator().manual_seed(0)

    def shares(sampling: Sampling) -> list[float]:
        drawn = [choose(logits, sampling, generator) for _ in range(2000)]
        return [drawn.count(token) / 2000 for token in range(4)]

    near = {"abs": 0.04}
    assert shares(Sampling(temperature=1.0)) == pytest.approx([0.1, 0.4, 0.3, 0.2], **near)
    assert shares(Sampling(temperature=1.0, top_k=2)) == pytest.approx([0, 4 / 7, 3 / 7, 0], **near)
    # 0.4 is below 0.65 and 0.4 + 0.3 reaches it
    assert shares(Sampling(1.0, None, 0.65)) == pytest.approx([0, 4 / 7, 3 / 7, 0], **near)
    assert shares(Sampling(1.0, None, 1e-9)) == [0, 1, 0, 0]
    cold = [0.1**2, 0.4**2, 0.3**2, 0.2**2]
    expected = [weight / sum(cold) for weight in cold]
    assert shares(Sampling(temperature=0.5)) == pytest.approx(expected, **near)
    assert choose(logits, GREEDY, None) == 1
    assert choose(logits, Sampling(temperature=1e-300), generator) == 1


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        (Sampling(temperature=-1.0), "temperature"),
        (Sampling(top_k=0), "top_k"),
        (Sampling(top_p=0.0), "top_p"),
        (Sampling(top_p=1.5), "top_p"),
        (Sampling(temperature=1.0), "generator"),
    ],
)
def test_impossible_sampling_is_refused(sampling: Sampling, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Decoder(hybrid("D"), sampling=sampling)


def test_an_empty_prompt_and_a_model_without_mtp_are_refused() -> None:
    model = hybrid("D")
    with pytest.raises(ValueError, match="at least one token"):
        write(model, prompt=[])
    with pytest.raises(ValueError, match="no MTP"):
        MtpDrafter(model)


def test_a_diverged_model_says_so() -> None:
    model = hybrid("D")
    with torch.no_grad():
        model.head[3] = float("nan")
    with pytest.raises(UsageError, match="not finite"):
        write(model)


def test_text_may_run_past_the_training_length() -> None:
    model = hybrid("AG")
    count = 2 * micro_lane().batch.sequence_length
    assert write(model, count) == by_the_parallel_forward(model, count)
