"""A loaded model's answers, token by token."""

from dataclasses import dataclass

import torch

from tuner import decode


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Args:
        temperature: 0 takes the likeliest token each time.
        top_p: tokens are drawn from the smallest set whose probabilities reach this.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


class Answer:
    """One answer in the making: call `step()` until it returns None, or `advance` for several at once.

    Several can be advanced in turn over one model, since each has its own cache.

    Args:
        decoder: the lean forward pass over the model's weights (`tuner.decode`); None for the model's own forward.
        adapter: the decoder's name for the adapter; None for the base.
    """

    def __init__(
        self, model, tokenizer, prompt: list[int], stop: set[int], sampling: Sampling,
        decoder: decode.Decoder | None = None, adapter: str | None = None,
    ):
        self.model, self.tokenizer, self.stop, self.sampling = model, tokenizer, stop, sampling
        self.decoder, self.adapter = decoder, adapter
        self.fed = list(prompt)  # what the model has not read yet
        self.cache = decode.Cache() if decoder else None
        self.ids: list[int] = []
        self.text = ""
        self.finished = ""
        self._random = torch.Generator().manual_seed(sampling.seed)
        self._told = self._spoken = 0  # `ids` from the first on are decoded again, those before the second have been said

    @property
    def reads(self) -> bool:
        """Whether it is still at its prompt."""
        return len(self.fed) > 1

    def step(self) -> str | None:
        """The next piece of text ("" while a character or the prompt is incomplete); None once the answer is over.

        `finished` then says why: "stop" at an end token, "length" at the limit.
        """
        return advance([self])[0]

    def _over(self) -> bool:
        return bool(self.finished) or len(self.ids) >= self.sampling.max_new_tokens

    @torch.no_grad()
    def _logits(self) -> torch.Tensor:
        """The next token's, by the model's own forward: (V,)."""
        ids = torch.tensor([self.fed], device=next(self.model.parameters()).device)
        out = self.model(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.cache = out.past_key_values
        return out.logits[0, -1]

    def _take(self, logits: torch.Tensor) -> str | None:
        """The piece of text that the next token brings."""
        token = choose(logits, self.sampling, self._random)
        if token in self.stop:
            return self._finish("stop")
        self.ids.append(token)
        self.fed = [token]
        return self._new_text(whole=False)

    def _finish(self, why: str) -> str | None:
        self.finished = why
        self.cache = None
        return self._new_text(whole=True) or None

    def _new_text(self, whole: bool) -> str:
        """What the newest tokens add, decoded together with the few before them: how a token reads may depend on those."""
        decoded = lambda ids: self.tokenizer.decode(ids, skip_special_tokens=True)  # noqa: E731
        said, text = decoded(self.ids[self._told : self._spoken]), decoded(self.ids[self._told :])
        if len(text) <= len(said) or (not whole and text.endswith("\ufffd")):  # half of a character; the rest comes with the next token
            return ""
        self._told, self._spoken = self._spoken, len(self.ids)
        self.text += text[len(said) :]
        return text[len(said) :]


def advance(makings: list[Answer]) -> list[str | None]:
    """One step of each answer, as `Answer.step` gives it; those over one decoder in one forward pass."""
    pieces: dict[int, str | None] = {}
    together = []
    for making in makings:
        if making._over():
            pieces[id(making)] = None if making.finished else making._finish("length")
        elif making.decoder is None:
            pieces[id(making)] = making._take(making._logits())
        else:
            together.append(making)
    if together:
        together.sort(key=lambda its: its.adapter or "")
        fed = [its.fed[: decode.PREFILL_TOKENS] for its in together]
        logits = together[0].decoder.forward(fed, [its.cache for its in together], [its.adapter for its in together])
        for making, read, its in zip(together, fed, logits):
            making.fed = making.fed[len(read) :]
            pieces[id(making)] = "" if making.fed else making._take(its)
    return [pieces[id(its)] for its in makings]


def choose(logits: torch.Tensor, sampling: Sampling, random: torch.Generator) -> int:
    """A token id from (V,) logits."""
    logits = logits.float().cpu()
    if sampling.temperature <= 0:
        return int(logits.argmax())
    chances = torch.softmax(logits / sampling.temperature, -1)
    if sampling.top_p >= 1:
        return int(torch.multinomial(chances, 1, generator=random))
    # Sorting a whole vocabulary takes as long as the model itself; the likeliest few hundred nearly always reach top_p.
    few = min(512, len(chances))
    ordered, order = chances.topk(few)
    if ordered.sum() < sampling.top_p and few < len(chances):
        ordered, order = chances.sort(descending=True)
    before = ordered.cumsum(-1) - ordered
    ordered[before >= sampling.top_p] = 0.0  # the likeliest has 0 before it, so one always stays
    return int(order[torch.multinomial(ordered, 1, generator=random)])


def answer(model, tokenizer, prompt: list[int], stop: set[int], sampling: Sampling) -> tuple[str, str]:
    """The whole answer, and why it ended: "stop" or "length"."""
    making = Answer(model, tokenizer, prompt, stop, sampling, *decode.over(model))
    while making.step() is not None:
        pass
    return tokenizer.decode(making.ids, skip_special_tokens=True).strip(), making.finished


def answers(model, tokenizer, prompts: list[list[int]], stop: set[int], max_new_tokens: int, is_over=lambda: False) -> list[tuple[str, str]] | None:
    """The likeliest answer to each prompt, all at once: each as (text, "stop" or "length").

    On two cores a step of eight answers costs little more than a step of one.

    Args:
        is_over: asked before each step; once it says so, nothing is waited for any more.

    Returns:
        None where it was over before the last answer had ended.
    """
    decoder, adapter = decode.over(model)
    if decoder is None:
        return _answers_padded(model, tokenizer, prompts, stop, max_new_tokens, is_over)
    makings = [Answer(model, tokenizer, prompt, stop, Sampling(max_new_tokens), decoder, adapter) for prompt in prompts]
    for making in makings:
        while making.reads:
            if is_over():
                return None
            making.step()
    while going := [its for its in makings if not its.finished]:
        if is_over():
            return None
        advance(going)
    return [(tokenizer.decode(its.ids, skip_special_tokens=True).strip(), its.finished) for its in makings]


@torch.no_grad()
def _answers_padded(model, tokenizer, prompts: list[list[int]], stop: set[int], max_new_tokens: int, is_over) -> list[tuple[str, str]] | None:
    """`answers` by the model's own forward, in one padded batch."""
    device = next(model.parameters()).device
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), tokenizer.pad_token_id)
    mask = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):  # padded on the left, so that every row's next token stands at the end
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    written: list[list[int]] = [[] for _ in prompts]
    over = [""] * len(prompts)
    cache = None
    for _ in range(max_new_tokens):
        if is_over():
            return None
        out = model(input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        ids = out.logits[:, -1].argmax(-1, keepdim=True)
        for row, token in enumerate(ids[:, 0].tolist()):
            if not over[row] and token in stop:
                over[row] = "stop"
            elif not over[row]:
                written[row].append(token)
        if all(over):
            break
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], -1)
        places = places[:, -1:] + 1
    return [(tokenizer.decode(its, skip_special_tokens=True).strip(), why or "length") for its, why in zip(written, over)]
