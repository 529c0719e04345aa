"""Log-probs and entropies of taken tokens, from the states before the output embedding and without a table of logits.

A table of logits is the largest tensor of an update (tokens × vocabulary, several times over) and is read once. Here it
is made and used a block of rows at a time, in the forward pass and, if it is large, again in the backward pass.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Logits of one block, in numbers: 2**18 float32 are 1 MiB, which stays in a core's cache.
_BLOCK = 2**18
# Of a table up to this size the blocks are kept for the backward pass: 2**23 float32 are 32 MiB.
_KEPT = 2**23


class LinearStatistics(torch.autograd.Function):
    """Statistics of softmax((W·h + b) / temperature).

    With p the softmax: ∂log p_a/∂z = 1[a] - p, and ∂H/∂z = -p·(log p + H).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        actions: Tensor,
        temperature: float,
        vocab_size: int,
    ) -> tuple[Tensor, Tensor]:
        """States (N, H), W (V', H), b (V') or none, actions (N,) int64 to log-probs and entropies, (N,) float32 each.

        Only the first `vocab_size` of the V' rows are in the distribution.
        """
        ctx.save_for_backward(hidden, weight, bias, actions)
        ctx.temperature, ctx.vocab_size = temperature, vocab_size
        ctx.set_materialize_grads(False)
        log_probs, entropy = hidden.new_empty(2, len(hidden), dtype=_wide(hidden))
        ctx.kept = []
        for part in _blocks(hidden, vocab_size):
            log_p = _logits(hidden[part], weight, bias, temperature, vocab_size).log_softmax(-1)
            if table_is_kept(len(hidden), vocab_size):
                ctx.kept.append(log_p)
            log_probs[part] = log_p.gather(-1, actions[part, None]).squeeze(-1)
            entropy[part] = -log_p.exp().mul_(log_p).sum(-1)
        ctx.entropy = entropy
        return log_probs, entropy.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """The formulas above; a loss without an entropy term does not pay for one, nor a frozen W for its gradient."""
        hidden, weight, bias, actions = ctx.saved_tensors
        by_log_prob, by_entropy = grads
        by_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        by_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        by_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        seen = weight[: ctx.vocab_size]
        for number, part in enumerate(_blocks(hidden, ctx.vocab_size)):
            if ctx.kept:
                log_p = ctx.kept[number]
            else:
                log_p = _logits(hidden[part], weight, bias, ctx.temperature, ctx.vocab_size).log_softmax(-1)
            p = log_p.exp()
            slope = torch.zeros_like(p[:, :1]) if by_log_prob is None else -by_log_prob[part, None]
            if by_entropy is not None:
                slope = slope - by_entropy[part, None] * (log_p + ctx.entropy[part, None])
            grad = p.mul_(slope)
            if by_log_prob is not None:
                grad.scatter_add_(-1, actions[part, None], by_log_prob[part, None])
            if ctx.temperature != 1:
                grad.div_(ctx.temperature)
            grad = grad.to(hidden.dtype)
            if by_hidden is not None:
                torch.mm(grad, seen, out=by_hidden[part])
            if by_weight is not None:
                by_weight[: ctx.vocab_size].addmm_(grad.T, hidden[part])
            if by_bias is not None:
                by_bias[: ctx.vocab_size] += grad.sum(0)
        return by_hidden, by_weight, by_bias, None, None, None


def statistics(logits: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """The same from logits (N, V), for a model that does more to them than a linear map."""
    log_p = torch.log_softmax(logits, -1)
    return log_p.gather(-1, actions[:, None]).squeeze(-1), -torch.linalg.vecdot(log_p.exp(), log_p)


@torch.no_grad()
def has_linear_head(model: "PreTrainedModel") -> bool:
    """Whether a causal LM's logits are its output embedding's and nothing more (a cap, a scale).

    Found out by feeding that layer large states in place of its own.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        return False
    generator = torch.Generator().manual_seed(0)
    states = 100 * torch.randn(1, 1, head.in_features, generator=generator).to(head.weight)
    handle = head.register_forward_pre_hook(lambda _, args: (states, *args[1:]))
    try:
        token = torch.zeros(1, 1, dtype=torch.int64, device=head.weight.device)
        logits = model(input_ids=token, use_cache=False).logits
    finally:
        handle.remove()
    return torch.allclose(logits, nn.functional.linear(states, head.weight, head.bias).to(logits), rtol=1e-3)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, vocab_size: int) -> Tensor:
    seen = nn.functional.linear(hidden, weight[:vocab_size], None if bias is None else bias[:vocab_size])
    # Widened before the division, as in the sampler: its distribution in bfloat16 as well.
    return seen.to(_wide(hidden)) if temperature == 1 else seen.to(_wide(hidden)) / temperature


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def table_is_kept(states: int, vocab_size: int) -> bool:
    """Whether the log-probs of so many states over so many tokens are kept for the backward pass."""
    return states * vocab_size <= _KEPT


def rows_of_block(vocab_size: int) -> int:
    """How many states' logits are made at once."""
    return max(16, _BLOCK // vocab_size)


def _blocks(hidden: Tensor, vocab_size: int) -> list[slice]:
    rows = rows_of_block(vocab_size)
    return [slice(start, start + rows) for start in range(0, len(hidden), rows)]
