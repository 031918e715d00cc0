"""The chat's own process: holds one base and its adapters, speaks JSON lines over pipes, answers in turn."""

import json
import queue
import sys
import threading
from collections import OrderedDict
from pathlib import Path

import torch

from tuner import answer, bases, encode, fast, models
from tuner.errors import UserError
from tuner.recipe import Recipe

MOST_ADAPTERS = 4


class Resident:
    """The base in memory and the adapters on it."""

    def __init__(self):
        self.key = None
        self.model = self.tokenizer = None
        self.adapters: OrderedDict[str, str] = OrderedDict()  # folder -> PEFT's name for it

    def bring(self, subject: dict, tuned: bool, on_status) -> str | None:
        """Make sure that base and adapter are loaded; gives the adapter's name, None for the base alone."""
        key = (subject["base"]["dir"], subject["quantisation"], json.dumps(subject["plan"], sort_keys=True))
        same_base = self.key and self.key[:2] == key[:2] and (self.key == key or not subject["plan"])
        if not same_base:
            if subject["base_sha256"]:
                bases.require_same(subject["base"], subject["base_sha256"])
            on_status(f"Loading {subject['base']['id']}")
            self.__init__()
            models.free()
            recipe = Recipe(quantisation=subject["quantisation"])
            loaded = models.load_base(Path(subject["base"]["dir"]), recipe, subject["plan"] or None)
            self.model, self.tokenizer, self.key = loaded.model, loaded.tokenizer, key
        if not tuned:
            return None
        folder = subject["adapter_dir"]
        if folder not in self.adapters:
            if subject["base_sha256"]:
                bases.require_same(subject["base"], subject["base_sha256"])
            on_status("Loading the adapter")
            if len(self.adapters) >= MOST_ADAPTERS:
                _, oldest = self.adapters.popitem(last=False)
                self.model.delete_adapter(oldest)
            name = f"adapter{max((int(its[7:]) for its in self.adapters.values()), default=-1) + 1}"
            self.model = models.load_adapter(self.model, Path(folder), subject["base"]["id"], name)
            fast.speed_up_lora(self.model)
            self.adapters[folder] = name
        self.adapters.move_to_end(folder)
        return self.adapters[folder]

    def use(self, name: str | None) -> None:
        """Let the next forward pass be the base's, or the named adapter's."""
        if not self.adapters:
            return
        if name is None:
            self.model.base_model.disable_adapter_layers()
        else:
            self.model.base_model.enable_adapter_layers()
            self.model.set_adapter(name)


def say(number: int, **reply) -> None:
    sys.stdout.write(json.dumps({"id": number, **reply}) + "\n")
    sys.stdout.flush()


def begin(resident: Resident, request: dict) -> tuple[answer.Answer, str | None]:
    """The answer that the request asks for, ready to be advanced."""
    number = request["id"]
    name = resident.bring(request["subject"], request["tuned"], lambda text: say(number, status=text))
    tokenizer, subject = resident.tokenizer, request["subject"]
    prompt = encode.prompt_ids(
        request["messages"], tokenizer, keep_control_tokens=subject["keep_control_tokens"], date=subject["template_date"]
    )
    config = resident.model.config
    limit = getattr(config.get_text_config(), "max_position_embeddings", None) or 1_000_000
    if len(prompt) + 1 > limit:
        raise UserError(f"The conversation has {len(prompt):,} tokens and this model reads at most {limit:,}. Clear it, or write less.")
    stops = encode.stop_ids(tokenizer, getattr(resident.model.generation_config, "eos_token_id", None))
    sampling = answer.Sampling(
        min(request["max_new_tokens"], limit - len(prompt)), request["temperature"], request["top_p"], request["seed"]
    )
    return answer.Answer(resident.model, tokenizer, prompt, stops, sampling), name


def serve(idle_s: float) -> None:
    """Answer requests until nothing was asked for a while, or standard input closes: the app is gone, so is its worker."""
    inbox: queue.Queue = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            inbox.put(json.loads(line))
        inbox.put(None)

    threading.Thread(target=read, daemon=True).start()
    resident = Resident()
    going: dict[int, tuple[answer.Answer, str | None]] = {}
    waiting: list[dict] = []
    while True:
        try:
            request = inbox.get(timeout=idle_s if not going and not waiting else None) if not going and not waiting else inbox.get_nowait()
        except queue.Empty:
            if not going and not waiting:
                return  # idle: memory goes back, and the next message starts another
            request = {}
        if request is None:
            return
        if request.get("do") == "cancel":
            going.pop(request["id"], None)
            waiting = [its for its in waiting if its["id"] != request["id"]]
        elif request.get("do") == "answer":
            waiting.append(request)
        # Another base replaces the one in memory only once nobody is being answered with it.
        for its in list(waiting):
            same = resident.key and resident.key[:2] == (its["subject"]["base"]["dir"], its["subject"]["quantisation"])
            if going and not same:
                break
            waiting.remove(its)
            guarded(its["id"], going, lambda its=its: going.__setitem__(its["id"], begin(resident, its)))
        for number in list(going):
            guarded(number, going, lambda number=number: advance(resident, going, number))


def advance(resident: Resident, going: dict, number: int) -> None:
    """One token of one answer."""
    making, name = going[number]
    resident.use(name)
    piece = making.step()
    if piece:
        say(number, piece=piece)
    if making.finished:
        del going[number]
        say(number, end=making.finished, tokens=len(making.ids))


def guarded(number: int, going: dict, act) -> None:
    """Do it; what goes wrong ends this one answer, in words."""
    try:
        act()
    except UserError as error:
        going.pop(number, None)
        say(number, error=str(error))
    except (MemoryError, torch.OutOfMemoryError):
        going.pop(number, None)
        say(number, error="There is not enough memory for this answer. Shorten the conversation, or wait for a run to end.")
    except (RuntimeError, ValueError, KeyError, IndexError, TypeError, OSError) as error:
        going.pop(number, None)
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        say(number, error=f"The model could not answer ({type(error).__name__}). Clear the conversation and try again.")


if __name__ == "__main__":
    serve(float(sys.argv[1]))
