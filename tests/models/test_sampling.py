"""Cached generation against full forward passes, and the sampler against its distribution."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from tests.helpers.models_doubles import make_lm, make_tokenizer
from tests.helpers.rounding import TINY, rounding
from textsafe_gym.errors import ModelError
from textsafe_gym.models.encoding import encode_pairs, encode_prompts, same_vocabulary
from textsafe_gym.models.sampling import (
    draw,
    generate,
    logits_at,
    make_cache,
    model_inputs,
    sample_responses,
    uniforms,
)

EOS = 1


def prompts_of(lengths: list[int], pad: int = 0, width: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(lengths) if width is None else width
    ids, mask = torch.full((len(lengths), width), pad), torch.zeros(len(lengths), width, dtype=torch.int64)
    for row, length in enumerate(lengths):
        ids[row, width - length :] = torch.from_numpy(np.random.default_rng(row).integers(3, 32, length))
        mask[row, width - length :] = 1
    return ids, mask


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral", "gemma2"])
def test_cached_logits_equal_a_full_forward_pass(kind: str) -> None:
    model = make_lm(kind)
    ids, mask = prompts_of([3, 7, 5])
    steps = 6
    extra = torch.from_numpy(np.random.default_rng(9).integers(3, 32, (3, steps)))
    whole = torch.cat([ids, extra], 1)
    whole_mask = torch.cat([mask, torch.ones_like(extra)], 1)
    past = make_cache(model, whole.shape[1])
    rows = torch.arange(3)
    new = ids
    for step in range(steps):
        if step == 3:  # a row leaves the batch, as in generation
            rows = torch.tensor([0, 2])
            new = new[rows]
            for layer in past.layers:
                layer.reorder_cache(rows)
        where = torch.zeros(new.shape, dtype=torch.bool)
        where[:, -1] = True
        with torch.no_grad():
            inputs = model_inputs(model, new, whole_mask[rows, : 7 + step])
            cached, _ = logits_at(model, where, **inputs, past_key_values=past, use_cache=True)
            for row, logits in zip(rows.tolist(), cached, strict=True):
                alone = whole[row : row + 1, : 7 + step][:, whole_mask[row, : 7 + step].bool()]
                torch.testing.assert_close(logits, model(alone).logits[0, -1], atol=TINY, rtol=TINY)
        new = extra[rows, step : step + 1]


def test_packed_logits_keep_what_the_architecture_does_after_the_head() -> None:
    model = make_lm("gemma2", final_logit_softcapping=0.5)
    ids, mask = prompts_of([4, 6])
    where = mask.bool()
    with torch.no_grad():
        logits, hidden = logits_at(model, where, **model_inputs(model, ids, mask))
        full = model(**model_inputs(model, ids, mask)).logits[where]
    torch.testing.assert_close(logits, full)
    assert logits.abs().max() <= 0.5
    assert hidden.shape == (10, 16)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature: float) -> None:
    logits = torch.tensor([2.0, -1.0, 0.5, 0.0, 1.0])
    n = 100_000
    uniform = torch.from_numpy(np.random.default_rng(0).random(n))
    tokens, log_probs = draw(logits.expand(n, -1), uniform, temperature)
    counts = torch.bincount(tokens, minlength=5)
    p = torch.softmax(logits.double() / temperature, -1)
    expected = p * n
    torch.testing.assert_close(
        log_probs.double(), p.log()[tokens], atol=rounding(terms=5, scale=6.0), rtol=0
    )  # nats, at most
    assert chisquare(counts.numpy(), expected.numpy()).pvalue > 0.001
    # the test can fail: the same counts against another temperature
    wrong = torch.softmax(logits.double() / (temperature * 1.1), -1) * n
    assert chisquare(counts.numpy(), wrong.numpy()).pvalue < 0.001


def test_draws_at_the_edges() -> None:
    logits = torch.tensor([[-float("inf"), 0.0, -float("inf"), 0.0, -float("inf")]]).expand(3, -1)
    picked, _ = draw(logits, torch.tensor([0.0, 0.5, np.nextafter(1.0, 0.0)], dtype=torch.float64))
    assert picked.tolist() == [1, 3, 3]
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ModelError, match="not finite"):
            draw(torch.tensor([[0.0, bad]]), torch.tensor([0.5], dtype=torch.float64))


def test_generated_first_tokens_follow_the_model() -> None:
    model = make_lm()
    ids, mask = prompts_of([5])
    n = 4000
    tokens = generate(model, ids.expand(n, -1), mask.expand(n, -1), 2, EOS, range(n), temperature=1.5).tokens
    with torch.no_grad():
        p = torch.softmax(model(ids).logits[0, -1].double() / 1.5, -1)
        counts = torch.bincount(tokens[:, 0], minlength=32)
        first = int(counts[2:].argmax()) + 2
        second = torch.softmax(model(torch.cat([ids, torch.tensor([[first]])], 1)).logits[0, -1].double() / 1.5, -1)
    assert chisquare(counts.numpy(), (p * n).numpy()).pvalue > 0.001
    after = torch.bincount(tokens[tokens[:, 0] == first, 1], minlength=32)
    assert chisquare(after.numpy(), (second * after.sum()).numpy()).pvalue > 0.001


def test_responses_depend_on_neither_padding_nor_company() -> None:
    model = make_lm()
    lengths = [2, 6, 4, 1, 5, 3]
    seeds = [11, 12, 13, 14, 15, 16]
    together = generate(model, *prompts_of(lengths), 12, EOS, seeds)
    wide = generate(model, *prompts_of(lengths, pad=7, width=15), 12, EOS, seeds)
    assert torch.equal(together.tokens, wide.tokens)
    assert torch.equal(together.lengths, wide.lengths)
    ids, mask = prompts_of(lengths)
    for row in range(6):
        part = slice(row, row + 1)
        alone = generate(model, ids[part], mask[part], 12, EOS, seeds[part])
        assert torch.equal(alone.tokens[0], together.tokens[row])
        assert alone.lengths[0] == together.lengths[row]


def test_eos_ends_a_response_and_the_batch_ends_with_the_last() -> None:
    model = make_lm()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    ids, mask = prompts_of([3] * 40)
    said = generate(model, ids, mask, 30, EOS, range(40), temperature=2.0)
    tokens, lengths = said.tokens, said.lengths
    assert len(set(lengths.tolist())) > 3
    for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True):
        assert EOS not in row[: length - 1]
        assert length == 30 or row[length - 1] == EOS
        assert set(row[length:]) <= {EOS}
    assert len(calls) == int(lengths.max())
    calls.clear()
    lm_head = model.get_output_embeddings().weight
    with torch.no_grad():
        lm_head.zero_()
        short = generate(model, ids, mask, 30, EOS, range(40), vocab_size=2)
    assert len(calls) == int(short.lengths.max()) < 30
    assert int(short.tokens.max()) < 2


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral", "gemma2"])
def test_a_shared_prompt_is_read_once_and_answered_as_often_as_asked(kind: str) -> None:
    model = make_lm(kind)
    read = []
    model.get_input_embeddings().register_forward_hook(lambda _, args, __: read.append(tuple(args[0].shape)))
    ids, mask = prompts_of([3, 7, 5])
    seeds = list(range(12))
    repeated = generate(model, ids.repeat_interleave(4, 0), mask.repeat_interleave(4, 0), 9, EOS, seeds)
    assert read[0] == (3, 7)
    assert len({tuple(row) for row in repeated.tokens[:4].tolist()}) > 1
    for row in range(12):
        prompt = slice(row // 4, row // 4 + 1)
        alone = generate(model, ids[prompt], mask[prompt], 9, EOS, [seeds[row]])
        assert torch.equal(alone.tokens[0], repeated.tokens[row])
        torch.testing.assert_close(alone.log_probs[0], repeated.log_probs[row], atol=TINY, rtol=0)


def test_states_are_those_that_the_tokens_were_predicted_from() -> None:
    model = make_lm()
    ids, mask = prompts_of([4, 4])
    said = generate(model, ids, mask, 6, EOS, [1, 2], temperature=0.7, keep_states=True)
    for row, length in enumerate(said.lengths.tolist()):
        with torch.no_grad():
            logits = model.get_output_embeddings()(said.states[row, :length]).double() / 0.7
        log_p = torch.log_softmax(logits, -1).gather(-1, said.tokens[row, :length, None]).squeeze(-1)
        torch.testing.assert_close(said.log_probs[row, :length].double(), log_p, atol=TINY / 0.7, rtol=0)
        assert said.log_probs[row, length:].abs().sum() == 0


def test_uniforms_of_a_row_follow_from_its_seed() -> None:
    both = uniforms([3, 4], 5)
    assert torch.equal(both[1], uniforms([4], 7)[0, :5])
    assert not torch.equal(both[0], both[1])


def test_no_room_in_the_models_positions() -> None:
    with pytest.raises(ModelError, match="64 positions"):
        generate(make_lm(), *prompts_of([40]), 30, EOS, [0])


def test_encoding() -> None:
    tokenizer = make_tokenizer(pad_is_eos=True)
    ids, mask = encode_pairs(tokenizer, ["w0 w1", "w2"], ["w3", ""])
    assert ids.tolist() == [[3, 4, 6, 1], [5, 1, 1, 1]]
    assert mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    ids, _ = encode_pairs(tokenizer, ["w0 w1 w2"], ["w3 w4"], max_length=4)
    assert ids.tolist() == [[5, 6, 7, 1]]
    assert encode_pairs(tokenizer, [], [])[0].shape[0] == 0
    ids, mask = encode_prompts(tokenizer, ["w0 w1 w2", "w3"], max_length=2)
    assert mask.tolist() == [[1, 1], [0, 1]]
    assert ids[mask.bool()].tolist() == [4, 5, 6]
    with pytest.raises(ModelError, match="no tokens"):
        encode_prompts(tokenizer, ["w0", "  "])
    with pytest.raises(ModelError, match="2 prompts but 1 responses"):
        encode_pairs(tokenizer, ["w0", "w1"], ["w1"])
    assert same_vocabulary(tokenizer, make_tokenizer())
    assert not same_vocabulary(tokenizer, make_tokenizer(words=["other"]))


def test_sample_responses_are_text_without_eos() -> None:
    tokenizer = make_tokenizer()
    model = make_lm()
    prompts = ["w0 w1", "w2 w3 w4", "w5"]
    whole = sample_responses(model, tokenizer, prompts, 10, [1, 2, 3])
    split = sample_responses(model, tokenizer, prompts, 10, [1, 2, 3], prompts_at_once=2)
    assert whole == split
    assert all("<eos>" not in answer for answer in whole)
    assert any(answer for answer in whole)
