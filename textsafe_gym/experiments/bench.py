"""What `textsafe bench` times: a random language model, random prompts, two random score models.

Every response uses its budget, so that jobs of one size are the same work.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from textsafe_gym.experiments.allocator import keep_freed_memory
from textsafe_gym.experiments.bench_sizes import Sizes
from textsafe_gym.files import Row
from textsafe_gym.protocols import Tokenizer

if TYPE_CHECKING:
    import gymnasium as gym
    from transformers import LlamaConfig

    from textsafe_gym.models.causal_lm import CausalLMActor
    from textsafe_gym.models.score import ScoreModel

_NEVER = -30.0  # the logit of the end of sequence
_EPOCHS, _MINIBATCHES = 4, 4
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def measure(
    job: str,
    sizes: Sizes,
    algorithm: str,
    repeats: int,
    threads: int | None,
    device: str,
    dtype: str,
    compile: bool = False,
    critics: str = "heads",
) -> Row:
    """Times a job `repeats` times after a first time that does not count.

    Args:
        job: "rollout", "iteration" or "env".
        sizes: of it.
        algorithm: of an iteration.
        repeats: at least 1.
        threads: of torch; by default as many as it takes for itself.
        device: a torch device.
        dtype: of the weights.
        compile: whether an iteration's policy compiles its layers.
        critics: of an iteration whose algorithm has any: "heads" on the policy's trunk, or "separate" models.

    Returns:
        For JSON: `tokens_per_second` and `seconds`, medians; their range; `compared_with`, tokens per second of each
        that the job is compared with; `fractions` of the time by phase; `bandwidth_bound` of a rollout, see there; and
        all that the job was.
    """
    import algos

    keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    if job == "iteration":
        timed = _iteration(sizes, algorithm, device, dtype, compile, critics)
    else:
        timed = (_rollout if job == "rollout" else _env)(sizes, device, dtype)
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    fractions: list[dict[str, float]] = []
    for repeat in range(repeats + 1):
        for name, work in timed.items():  # in turns, so that a change of the machine's speed affects all alike
            _wait(device)
            start = time.perf_counter()
            parts = work()
            _wait(device)
            if repeat:
                seconds[name].append(time.perf_counter() - start)
                if parts:
                    fractions.append({key: part / sum(parts.values()) for key, part in parts.items()})
    own, *others = seconds
    return {
        "job": job,
        "tokens_per_second": sizes.new_tokens / statistics.median(seconds[own]),
        "tokens_per_second_range": [sizes.new_tokens / f(seconds[own]) for f in (max, min)],
        "seconds": statistics.median(seconds[own]),
        "compared_with": {name: sizes.new_tokens / statistics.median(seconds[name]) for name in others},
        "fractions": {key: statistics.median(row[key] for row in fractions) for key in (fractions or [{}])[0]},
        "bandwidth_bound": bandwidth_bound(sizes, device, dtype) if job == "rollout" else None,
        "sizes": asdict(sizes),
        "parameters": sum(x.numel() for x in model_of(sizes, "meta", dtype).parameters()),
        "algorithm": algorithm if job == "iteration" else None,
        "repeats": repeats,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "dtype": dtype,
        "compile": compile,
        "critics": critics if job == "iteration" and algos.critics_of(algorithm) else None,
        "torch": torch.__version__,
    }


Timed = dict[str, Callable[[], dict[str, float] | None]]


def _rollout(sizes: Sizes, device: str, dtype: str) -> Timed:
    from transformers import GenerationConfig

    from textsafe_gym.models.sampling import generate

    actor, plain = actor_of(sizes, device, dtype), model_of(sizes, device, dtype)
    ids = torch.randint(3, sizes.vocab, (sizes.batch, sizes.prompt_length), device=device)
    mask = torch.ones_like(ids)
    settings = GenerationConfig(
        max_new_tokens=sizes.response_length, do_sample=True, top_k=0, top_p=1.0, pad_token_id=0, eos_token_id=None
    )

    def ours() -> None:
        seeds = range(sizes.batch)
        generate(actor.model, ids, mask, sizes.response_length, 2, seeds, 1.0, sizes.vocab, keep_states=True)

    def theirs() -> None:
        plain.generate(ids, attention_mask=mask, generation_config=settings)

    return {"textsafe": ours, "transformers generate": theirs}


def _iteration(sizes: Sizes, algorithm: str, device: str, dtype: str, compile: bool, critics: str) -> Timed:
    import algos
    from textsafe_gym.models import make_critics

    env, actor = env_of(sizes, device, dtype), actor_of(sizes, device, dtype, compile)
    kinds = algos.critics_of(algorithm)
    separate = kinds if critics == "separate" else ()
    sources = {f"{kind}_critic": score_model_of(sizes, kind, device, dtype) for kind in separate}
    trainer = algos.make(
        algorithm,
        env,
        policy=actor,
        critics=make_critics(actor, env, kinds, critics, **sources),
        episodes=10**9,
        episodes_per_iteration=sizes.batch,
        epochs=_EPOCHS,
        minibatch_size=max(1, sizes.batch // _MINIBATCHES),
        learning_rate=1e-4,
    )

    def iterate() -> dict[str, float]:
        row = trainer.learn(trainer.episodes + sizes.batch)[0]
        return {name: row[f"seconds_{name}"] for name in ("rollout", "update")}

    return {"textsafe": iterate}


def _env(sizes: Sizes, device: str, dtype: str) -> Timed:
    from textsafe_gym.models.acting import TokenSampler
    from textsafe_gym.models.sampling import generate

    actor, env = actor_of(sizes, device, dtype), env_of(sizes, device, dtype)
    task: Any = env.unwrapped

    def steps() -> None:
        act = TokenSampler(actor, sizes.prompt_length)
        observation, _ = env.reset(seed=0)
        for _ in range(sizes.response_length):
            observation = env.step(act(observation)[0])[0]

    def at_once() -> None:
        observation, _ = env.reset(seed=0)
        ids, mask = (
            torch.as_tensor(observation[name][:, : sizes.prompt_length]) for name in ("input_ids", "attention_mask")
        )
        generated = generate(actor.model, ids, mask, sizes.response_length, 2, range(sizes.batch), 1.0, sizes.vocab)
        task.play(generated.tokens.cpu().numpy(), generated.lengths.cpu().numpy())

    return {"steps": steps, "generation": at_once}


def bandwidth_bound(sizes: Sizes, device: str, dtype: str) -> float:
    """Tokens per second if decoding did nothing but read memory, at the speed of this device's copies.

    Each step reads all weights once, but for the input embedding's, and each row its keys and values so far.
    """
    width = _DTYPES[dtype].itemsize
    model = model_of(sizes, "meta", dtype)
    weights = sum(x.numel() for x in model.parameters()) - model.get_input_embeddings().weight.numel()
    cache = 2 * sizes.layers * sizes.hidden * (sizes.prompt_length + sizes.response_length / 2)
    return sizes.batch * _copied_per_second(device) / (width * (weights + sizes.batch * cache))


def _copied_per_second(device: str) -> float:
    """Bytes that are read and written in a second, of blocks beyond any cache of a core."""
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(6):
        _wait(device)
        start = time.perf_counter()
        target.copy_(source)
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / statistics.median(seconds[1:])


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def tokenizer_of(sizes: Sizes) -> Tokenizer:
    """One word a token, so that random ids are texts and come back as the same ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"t{i}": i for i in range(3, sizes.vocab)}}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def config_of(sizes: Sizes, **more: Any) -> "LlamaConfig":
    """A Llama of the job's sizes."""
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads,
        intermediate_size=sizes.mlp,
        vocab_size=sizes.vocab,
        max_position_embeddings=max(512, sizes.prompt_length + sizes.response_length),
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        **more,
    )


def model_of(sizes: Sizes, device: str, dtype: str) -> Any:
    """A random causal LM that never ends a response early."""
    from transformers import LlamaForCausalLM

    with torch.device(device):
        model = LlamaForCausalLM(config_of(sizes))
        model.lm_head = torch.nn.Linear(sizes.hidden, sizes.vocab)
    with torch.no_grad():
        model.lm_head.weight.normal_(0, model.config.initializer_range)
        model.lm_head.bias.zero_()
        model.lm_head.bias[model.config.eos_token_id] = _NEVER
    return model.eval().to(_DTYPES[dtype])


def actor_of(sizes: Sizes, device: str = "cpu", dtype: str = "float32", compile: bool = False) -> "CausalLMActor":
    """A random language model as an actor."""
    from textsafe_gym.models.causal_lm import CausalLMActor

    torch.manual_seed(0)
    return CausalLMActor(model_of(sizes, device, dtype), tokenizer_of(sizes), compile=compile)


def score_model_of(sizes: Sizes, kind: str, device: str, dtype: str) -> "ScoreModel":
    """A random reward or cost model of the policy's size."""
    from transformers import LlamaForSequenceClassification

    from textsafe_gym.models.score import ScoreModel

    model: Any = LlamaForSequenceClassification(config_of(sizes, num_labels=1))
    return ScoreModel(model.to(device, _DTYPES[dtype]), tokenizer_of(sizes), kind)


def env_of(sizes: Sizes, device: str = "cpu", dtype: str = "float32") -> "gym.vector.VectorEnv":
    """A vector environment with random prompts and random score models of the policy's size."""
    import gymnasium as gym

    torch.manual_seed(1)
    prompts = [
        " ".join(f"t{i}" for i in row)
        for row in torch.randint(3, sizes.vocab, (4 * sizes.batch, sizes.prompt_length)).tolist()
    ]
    reward_model, cost_model = (score_model_of(sizes, kind, device, dtype) for kind in ("reward", "cost"))
    return gym.make_vec(
        "SafeRLHF-v0",
        num_envs=sizes.batch,
        prompts=prompts,
        tokenizer=tokenizer_of(sizes),
        max_prompt_length=sizes.prompt_length,
        max_response_length=sizes.response_length,
        cost_limit=-10.0,  # out of reach, so that the multiplier is at work
        reward_model=reward_model,
        cost_model=cost_model,
    )
