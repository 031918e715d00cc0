"""What an answer costs: tokens a second beside `generate` and llama.cpp, the wait for the first, two at once, memory.

    make bench-chat
    python -m tests.bench.chat --rounds 3 --tokens 96

The starter model on this machine's CPU, and an adapter on it with random LoRA of rank 16 on all linear layers. Every way
of decoding is timed in turn, several rounds in one call; a figure is the median of its rounds. A rate counts the tokens
after the first: what the prompt costs is the row "first token".
"""

import argparse
import gc
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from tests.bench import machine
from tuner import answer, chat, decode, encode, models, starter
from tuner.recipe import STARTER_MODEL, Recipe

PROMPTS = (
    "What is the capital of France?", "Write a poem about the sea.", "Explain gravity to a child.", "List three fruits.",
    "Who wrote Hamlet?", "Give me a recipe for pancakes.", "What is 12 times 9?", "Translate 'good morning' to Spanish.",
    "Name a famous painter and say why.", "How do I learn Python?", "Tell me a joke.", "What causes rain?", "Describe a cat.",
    "Why is the sky blue?", "Write a haiku about snow.", "What is photosynthesis?", "How far is the moon?",
    "Summarise the story of Cinderella.", "What is a prime number?", "Suggest a name for a dog.",
)
STORY = "Tell me a very long story about a lighthouse, its keeper and the many ships that pass by in every season of the year."
_LINE = "{:<62} {:>10}"


def load(base_dir: Path, quantisation: str, precision: str) -> models.Loaded:
    """The base as `generate` is given it: sdpa, and NF4 in bitsandbytes' packed evaluation format."""
    loaded = models.load_base(
        base_dir, Recipe(quantisation=quantisation), {"precision": precision, "attention": "sdpa", "dequantised": False}
    )
    if quantisation == "nf4":
        decode.pack(loaded.model)
    return loaded


def make_adapter(base_dir: Path, base_id: str, folder: Path) -> Path:
    """An adapter of rank 16 on all linear layers whose B is random: small enough that answers stay answers."""
    model = models.attach_lora(load(base_dir, "none", "bfloat16").model, Recipe(lora_rank=16), base_id)
    random = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.01 * torch.randn(parameter.shape, generator=random)
    models.save_adapter(model, folder)
    return folder


# Ways to decode ---------------------------------------------------------------------------------------------------

# Each takes a prompt's ids and a number of tokens, and gives the ids it wrote.
Way = Callable[[list[int], int], list[int]]


def by_generate(model) -> Way:
    def write(ids: list[int], tokens: int) -> list[int]:
        with torch.no_grad():
            return model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=tokens, pad_token_id=0)[0, len(ids) :].tolist()

    model.generation_config.eos_token_id = None  # all write as many tokens
    return write


def by_us(model, tokenizer, decoder: decode.Decoder, adapter: str | None) -> Way:
    """As the chat does it, text and all."""
    def write(ids: list[int], tokens: int) -> list[int]:
        making = answer.Answer(model, tokenizer, ids, set(), answer.Sampling(tokens), decoder, adapter)
        while making.step() is not None:
            pass
        return making.ids

    return write


def by_llama_cpp(threads: int) -> Way | None:
    """llama.cpp on the GGUF that the starter was converted from (Q4_1); None where it is not installed."""
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError):
        return None
    model = llama_cpp.Llama(str(starter.gguf_folder() / starter.STARTERS[0].file), n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False)

    def write(ids: list[int], tokens: int) -> list[int]:
        model.reset()
        written = []
        for token in model.generate(ids, temp=0.0, repeat_penalty=1.0):
            written.append(token)
            if len(written) == tokens:
                return written

    return write


def rate(way: Way, ids: list[int], tokens: int) -> float:
    """Tokens a second after the first."""
    def took(count: int) -> float:
        began = time.perf_counter()
        way(ids, count)
        return time.perf_counter() - began

    first = min(took(1), took(1))
    return (tokens - 1) / max(took(tokens) - first, 1e-9)


def rates(ways: dict[str, Way | None], ids: list[int], tokens: int, rounds: int) -> dict[str, float]:
    """Each way's median rate; all take their turn in every round."""
    found: dict[str, list[float]] = {name: [] for name, way in ways.items() if way}
    for round_ in range(rounds + 1):
        for name in found:
            its = rate(ways[name], ids, tokens if round_ else 4)
            if round_:  # the first only warms up
                found[name].append(its)
    return {name: statistics.median(its) for name, its in found.items()}


def equal_answers(these: Way, those: Way, prompts: list[list[int]], tokens: int) -> int:
    return sum(these(ids, tokens) == those(ids, tokens) for ids in prompts)


# The worker -------------------------------------------------------------------------------------------------------


def first_piece(worker: chat.Worker, subject: chat.Subject, messages: list[dict], tuned: bool) -> float:
    """Seconds from asking to the first piece of text."""
    began = time.perf_counter()
    pieces = worker.answer(subject, messages, tuned=tuned, max_new_tokens=8)
    next(pieces)
    took = time.perf_counter() - began
    pieces.close()
    return took


def pieces_a_second(worker: chat.Worker, subject: chat.Subject, tuned: bool, tokens: int) -> float:
    """Pieces of a greedy answer a second, from its first on; the same answer has the same pieces, alone or not."""
    came = [time.perf_counter() for _ in worker.answer(subject, [{"role": "user", "content": STORY}], tuned=tuned, max_new_tokens=tokens)]
    return (len(came) - 1) / (came[-1] - came[0])


def beside(worker: chat.Worker, subject: chat.Subject, tuned: bool, other_tuned: bool, tokens: int) -> float:
    """The same while somebody else is being answered all the time."""
    over, begun = threading.Event(), threading.Event()

    def other() -> None:
        while not over.is_set():
            for _ in worker.answer(subject, [{"role": "user", "content": STORY}], tuned=other_tuned, max_new_tokens=4 * tokens):
                begun.set()
                if over.is_set():
                    break

    thread = threading.Thread(target=other)
    thread.start()
    begun.wait(60)
    try:
        return pieces_a_second(worker, subject, tuned, tokens)
    finally:
        over.set()
        thread.join()


def memory_mib(worker: chat.Worker) -> tuple[float, float]:
    """The worker's own memory now, and all that it has resident, with the libraries' pages."""
    info = psutil.Process(worker._process.pid).memory_full_info()
    return info.uss / 2**20, info.rss / 2**20


def prompt_of(tokens: int, tokenizer) -> list[dict]:
    """A conversation whose prompt has about so many tokens."""
    words = STORY.split()
    count = 1
    while True:
        messages = [{"role": "user", "content": " ".join(words[place % len(words)] for place in range(count))}]
        if len(encode.prompt_ids(messages, tokenizer)) >= tokens:
            return messages
        count += 1


def through_the_worker(subject: chat.Subject, tokenizer, tokens: int, rounds: int) -> None:
    """The rows that are about the chat's own process."""
    asked = prompt_of(200, tokenizer)
    median = lambda act: statistics.median(act() for _ in range(rounds))  # noqa: E731
    with chat.Worker() as worker:
        first_piece(worker, subject, asked, False)
        own, all_ = memory_mib(worker)
        print(_LINE.format("worker's memory with the base, MiB (own / resident)", f"{own:.0f} / {all_:.0f}"))
        first_piece(worker, subject, asked, True)
        own, all_ = memory_mib(worker)
        print(_LINE.format("the same with base and adapter", f"{own:.0f} / {all_:.0f}"))
        length = len(encode.prompt_ids(asked, tokenizer))
        for name, tuned in (("base", False), ("tuned", True)):
            its = median(lambda tuned=tuned: first_piece(worker, subject, asked, tuned))
            print(_LINE.format(f"first token of a {length}-token prompt, warm worker, {name}, s", f"{its:.3f}"))
        alone = {tuned: median(lambda tuned=tuned: pieces_a_second(worker, subject, tuned, tokens)) for tuned in (False, True)}
        for name, tuned in (("base", False), ("tuned", True)):
            print(_LINE.format(f"pieces/s through the worker, {name} alone", f"{alone[tuned]:.1f}"))
        for name, tuned, other in (
            ("base beside base", False, False), ("base beside tuned", False, True), ("tuned beside base", True, False),
            ("tuned beside tuned", True, True),
        ):
            its = median(lambda tuned=tuned, other=other: beside(worker, subject, tuned, other, tokens))
            print(_LINE.format(f"two chats at once, {name}: share of its speed alone", f"{its / alone[tuned]:.0%}"))
        own, all_ = memory_mib(worker)
        print(_LINE.format("worker's memory after all that, MiB (own / resident)", f"{own:.0f} / {all_:.0f}"))


# The table --------------------------------------------------------------------------------------------------------


def bench(base_dir: Path, base_id: str, folder: Path, tokens: int, rounds: int, prompts: int, worker: bool) -> dict[str, float]:
    """Print the table; the decode rates by name."""
    adapter = make_adapter(base_dir, base_id, folder / "adapter")
    quantised = "nf4" if decode.can_pack() else "none"
    full, half = load(base_dir, "none", "float32"), load(base_dir, "none", "bfloat16")
    packed, mine = load(base_dir, quantised, "bfloat16"), load(base_dir, quantised, "bfloat16")
    tokenizer = mine.tokenizer
    decoder = decode.build(mine.model, own=True)
    dense = decode.build(half.model)
    models.load_adapter(mine.model, adapter, base_id, "it")
    assert decoder and dense and decoder.take("it")
    with_adapter = load(base_dir, quantised, "bfloat16")
    tuned = models.load_adapter(with_adapter.model, adapter, base_id, "it")
    gc.collect()

    # Base models that an adapter hangs on are not used for `generate` without it: PEFT's layers would slow it down.
    ways: dict[str, Way | None] = {
        "generate, fp32": by_generate(full.model), "generate, bf16": by_generate(half.model),
        f"generate, {'NF4 packed by bitsandbytes' if quantised == 'nf4' else 'bf16 again (no packing here)'}": by_generate(packed.model),
        "generate with the adapter, the same": by_generate(tuned),
        "llama.cpp, the starter's own GGUF (Q4_1)": by_llama_cpp(torch.get_num_threads()) if worker else None,
        "ours, base, bf16": by_us(half.model, tokenizer, dense, None),
        "ours, base": by_us(mine.model, tokenizer, decoder, None), "ours, tuned": by_us(mine.model, tokenizer, decoder, "it"),
    }
    chats = [encode.prompt_ids([{"role": "user", "content": text}], tokenizer) for text in PROMPTS[:prompts]]
    found = rates(ways, chats[1], tokens, rounds)
    print(f"\n{_LINE.format('decoding, tokens/s after the first', 'tokens/s')}")
    for name in ways:
        print(_LINE.format(name, f"{found[name]:.1f}" if name in found else "not installed"))
    names = list(ways)
    plain = {name: found[name] for name in names[:3]}
    fastest = max(plain, key=plain.get)
    print(f"\nfastest generate: {fastest}")
    print(f"decode, ours base / fastest generate: {found['ours, base'] / plain[fastest]:.2f}")
    print(f"decode, ours tuned / fastest generate (which has no adapter): {found['ours, tuned'] / plain[fastest]:.2f}")
    print(f"decode, ours tuned / generate with the adapter: {found['ours, tuned'] / found[names[3]]:.2f}\n")

    length = 64 if worker else tokens
    for name, these, those, count in (
        ("base", "ours, base", names[2], prompts), ("tuned", "ours, tuned", names[3], prompts),
        ("base in bf16", "ours, base, bf16", "generate, bf16", max(1, prompts // 4)),
    ):
        equal = equal_answers(ways[these], ways[those], chats[:count], length)
        print(_LINE.format(f"greedy answers of {length} tokens equal to generate's, {name}", f"{equal} of {count}"))
    ways.clear()  # the models in them
    del full, half, packed, with_adapter, tuned, dense
    models.free()
    if worker:
        base = {"id": base_id, "revision": "", "dir": str(base_dir), "what": "the starter"}
        through_the_worker(chat.Subject("bench", base, str(adapter)), tokenizer, tokens, rounds)
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.chat")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=20, help="answers compared with generate's")
    chosen = parser.parse_args(arguments)
    began = time.monotonic()
    cores = psutil.cpu_count()
    torch.set_num_threads(cores)
    base_dir = starter.prepare()
    quiet = machine.Quiet()
    quiet.look()
    print(machine.describe(("torch", "transformers", "peft", "bitsandbytes")))
    print(f"{chosen.tokens} tokens, medians of {chosen.rounds} rounds; SmolLM2-135M-Instruct, adapter of rank 16 on all linear layers")
    folder = Path(tempfile.mkdtemp(prefix="bench-chat-"))
    try:
        bench(base_dir, STARTER_MODEL, folder, chosen.tokens, chosen.rounds, chosen.prompts, worker=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    quiet.look()
    if said := quiet.warning():
        print(f"\n{said}")
    print(f"\n{time.monotonic() - began:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
