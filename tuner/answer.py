"""A loaded model's answers, token by token."""

from dataclasses import dataclass

import torch


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
    """One answer in the making: call `step()` until it returns None.

    Several can be advanced in turn over one model, since each has its own cache.
    """

    def __init__(self, model, tokenizer, prompt: list[int], stop: set[int], sampling: Sampling):
        self.model, self.tokenizer, self.stop, self.sampling = model, tokenizer, stop, sampling
        self.fed = torch.tensor([prompt], device=next(model.parameters()).device)
        self.cache = None
        self.ids: list[int] = []
        self.text = ""
        self.finished = ""
        self._random = torch.Generator().manual_seed(sampling.seed)

    @torch.no_grad()
    def step(self) -> str | None:
        """The next piece of text ("" while a character is incomplete); None once the answer is over.

        `finished` then says why: "stop" at an end token, "length" at the limit.
        """
        if self.finished:
            return None
        if len(self.ids) >= self.sampling.max_new_tokens:
            return self._finish("length")
        out = self.model(input_ids=self.fed, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.cache = out.past_key_values
        token = choose(out.logits[0, -1], self.sampling, self._random)
        if token in self.stop:
            return self._finish("stop")
        self.ids.append(token)
        self.fed = torch.tensor([[token]], device=self.fed.device)
        return self._new_text(self.tokenizer.decode(self.ids, skip_special_tokens=True), whole=False)

    def _finish(self, why: str) -> str | None:
        self.finished = why
        self.cache = None
        return self._new_text(self.tokenizer.decode(self.ids, skip_special_tokens=True), whole=True) or None

    def _new_text(self, text: str, whole: bool) -> str:
        if not whole and text.endswith("\ufffd"):  # half of a character; the rest comes with the next token
            return ""
        piece, self.text = text[len(self.text) :], text
        return piece


def choose(logits: torch.Tensor, sampling: Sampling, random: torch.Generator) -> int:
    """A token id from (V,) logits."""
    if sampling.temperature <= 0:
        return int(logits.argmax())
    chances = torch.softmax(logits.float().cpu() / sampling.temperature, -1)
    ordered, order = chances.sort(descending=True)
    before = ordered.cumsum(-1) - ordered
    ordered[before >= sampling.top_p] = 0.0  # the likeliest has 0 before it, so one always stays
    return int(order[torch.multinomial(ordered, 1, generator=random)])


def answer(model, tokenizer, prompt: list[int], stop: set[int], sampling: Sampling) -> tuple[str, str]:
    """The whole answer, and why it ended: "stop" or "length"."""
    making = Answer(model, tokenizer, prompt, stop, sampling)
    while making.step() is not None:
        pass
    return making.text.strip(), making.finished


@torch.no_grad()
def answers(model, tokenizer, prompts: list[list[int]], stop: set[int], max_new_tokens: int) -> list[tuple[str, str]]:
    """The likeliest answer to each prompt, all in one batch: each as (text, "stop" or "length").

    On two cores a step of eight answers costs little more than a step of one.
    """
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
