"""Texts to token ids, the same for policies and score models: bare, or by the tokenizer's chat template.

Without a template, prompt and response are tokenised apart and without special tokens of the tokenizer's own. With one,
a policy reads the prompt as the user's message, and a score model reads the whole exchange up to where the template
ends it, as published reward models do. transformers renders templates, in a sandbox. This loads no torch.
"""

from collections.abc import Callable, Mapping, Sequence

from textsafe_gym.errors import ModelError
from textsafe_gym.protocols import Tokenizer

_MARK = "textsafe"


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without any special tokens of the tokenizer's own."""
    # "verbose" off: the tokenizer's warning about long texts says less than the errors here.
    return tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []


def prompt_ids(tokenizer: Tokenizer, prompts: Sequence[str], max_length: int | None = None) -> list[list[int]]:
    """What a policy reads of each prompt; with a chat template, up to where the assistant's message begins.

    A prompt longer than `max_length` keeps the last tokens of its text; the template stays whole.

    Raises:
        ModelError: the template cannot be rendered, or leaves a prompt no room.
    """
    if not has_template(tokenizer):
        rows = encode(tokenizer, prompts)
        return rows if max_length is None else [row[max(0, len(row) - max_length) :] for row in rows]

    def rendered(texts: Sequence[str]) -> list[list[int]]:
        return _render(tokenizer, [[_message("user", text)] for text in texts], add_generation_prompt=True)

    rows = rendered(prompts)
    for i, row in enumerate(rows):
        if max_length is not None and len(row) > max_length:
            rows[i] = _shortened(tokenizer, prompts[i], max_length, lambda text: rendered([text]))[0]
            if len(rows[i]) > max_length:
                raise ModelError(
                    f"the chat template alone takes {len(rows[i])} tokens, but a prompt may take {max_length}; "
                    "raise that budget"
                )
    return rows


def pair_ids(
    tokenizer: Tokenizer, prompts: Sequence[str], responses: Sequence[str], max_length: int | None = None
) -> list[list[int]]:
    """What a score model reads: prompt, response and always an EOS; with a chat template, what that makes of the two.

    A sequence longer than `max_length` loses tokens as in `answers_ids`.

    Raises:
        ModelError: the tokenizer has no EOS, the template cannot be rendered, or there is not one response a prompt.
    """
    if len(prompts) != len(responses):
        raise ModelError(f"{len(prompts)} prompts but {len(responses)} responses; give one response a prompt")
    if tokenizer.eos_token_id is None:
        raise ModelError("the tokenizer has no end-of-sequence token; set its eos_token")
    pairs = list(zip(prompts, responses, strict=True))
    if has_template(tokenizer):
        rows = _render(tokenizer, [[_message("user", p), _message("assistant", r)] for p, r in pairs])
    else:
        rows = [
            [*prompt, *response, tokenizer.eos_token_id]
            for prompt, response in zip(encode(tokenizer, prompts), encode(tokenizer, responses), strict=True)
        ]
    if max_length is None:
        return rows
    return [
        row if len(row) <= max_length else answers_ids(tokenizer, prompt, [response], max_length)[0]
        for row, (prompt, response) in zip(rows, pairs, strict=True)
    ]


def answers_ids(tokenizer: Tokenizer, prompt: str, answers: Sequence[str], max_length: int) -> list[list[int]]:
    """The rows of `pair_ids` for several answers to one prompt, each at most `max_length` long.

    All lose equally many tokens from the beginning of the prompt's text, so that answers still differ from the same
    position on; what is too long without any prompt loses its own beginning.
    """
    if has_template(tokenizer):
        rows = _shortened(
            tokenizer, prompt, max_length, lambda text: pair_ids(tokenizer, [text] * len(answers), answers)
        )
    else:
        before, *after = encode(tokenizer, [prompt, *answers])
        over = max(0, len(before) + max(map(len, after)) + 1 - max_length)
        rows = [[*before[over:], *row, tokenizer.eos_token_id] for row in after]
    return [row[-max_length:] for row in rows]


def end_with_turn(tokenizer: Tokenizer) -> None:
    """Makes the token that ends an assistant's turn in the chat template, if it has one, the tokenizer's EOS.

    They differ for some chat models: Gemma ends a turn with <end_of_turn> while its tokenizer's EOS is <eos>.

    Raises:
        ModelError: the template cannot be rendered.
    """
    if not has_template(tokenizer):
        return
    exchange = [_message("user", "-"), _message("assistant", _MARK)]
    _, found, after = _texts(tokenizer, [exchange])[0].rpartition(_MARK)
    ends = [i for i in encode(tokenizer, [after])[0] if i in tokenizer.added_tokens_decoder]
    if found and ends and ends[0] != tokenizer.eos_token_id:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ends[0])


def has_template(tokenizer: Tokenizer) -> bool:
    """Whether the model is one for chats, whose prompts the tokenizer puts into a template."""
    return bool(getattr(tokenizer, "chat_template", None))


def _message(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def _texts(
    tokenizer: Tokenizer, conversations: Sequence[Sequence[Mapping[str, str]]], add_generation_prompt: bool = False
) -> list[str]:
    try:
        return (
            tokenizer.apply_chat_template(conversations, tokenize=False, add_generation_prompt=add_generation_prompt)
            if conversations
            else []
        )
    except Exception as error:  # whatever the template's own code raises
        message = " ".join(str(error).split())[:200]
        raise ModelError(
            f"the tokenizer's chat template cannot be rendered: {message}; give the tokenizer another, or none"
        ) from error


def _render(
    tokenizer: Tokenizer, conversations: Sequence[Sequence[Mapping[str, str]]], add_generation_prompt: bool = False
) -> list[list[int]]:
    texts = _texts(tokenizer, conversations, add_generation_prompt)
    bos = tokenizer.bos_token
    if not bos:
        return encode(tokenizer, texts)
    # A BOS that the template wrote is set as an id, as tokenizers set theirs: in a SentencePiece tokenizer, what
    # follows a written one would no longer be the beginning of a text.
    rows = encode(tokenizer, [text.removeprefix(bos) for text in texts])
    return [
        [tokenizer.bos_token_id, *row] if text.startswith(bos) else row for text, row in zip(texts, rows, strict=True)
    ]


def _shortened(
    tokenizer: Tokenizer, text: str, max_length: int, rows_of: Callable[[str], list[list[int]]]
) -> list[list[int]]:
    """The rows that come of a text without as many of its first tokens as it takes for all of them to fit."""
    kept = encode(tokenizer, [text])[0]
    rows = rows_of(text)
    while kept and (over := max(map(len, rows)) - max_length) > 0:
        kept = kept[over:]
        rows = rows_of(tokenizer.decode(kept, clean_up_tokenization_spaces=False))
    return rows
