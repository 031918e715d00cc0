"""The chat's own process: holds one base and its adapters, speaks JSON lines over pipes, answers in turn."""

import json
import os
import queue
import sys
import threading
import time
import traceback
from collections import OrderedDict
from pathlib import Path

import psutil
import torch

from tuner import answer, bases, decode, encode, lease, models, packed, redaction, room
from tuner.errors import UserError
from tuner.recipe import Recipe

MOST_ADAPTERS = 4
LOOK_S = 1.0  # how often it is looked whether a run trains


class Resident:
    """The base in memory, once, and the adapters on it."""

    def __init__(self):
        self.key = None
        self.model = self.tokenizer = None
        self.decoder: decode.Decoder | None = None
        self.adapters: OrderedDict[tuple, str] = OrderedDict()  # folder and time of its weights -> PEFT's name for it
        self.base_id, self.noted_gib = "", 0.0

    @staticmethod
    def _key(subject: dict) -> tuple:
        return subject["base"]["dir"], subject["quantisation"], json.dumps(choices(subject), sort_keys=True)

    def holds(self, subject: dict) -> bool:
        """Whether the base in memory is this subject's; one without a plan of its own takes any."""
        wanted = self._key(subject)
        return self.key is not None and self.key[:2] == wanted[:2] and (self.key == wanted or not subject["plan"])

    def bring(self, subject: dict, tuned: bool, on_status, in_use: set = frozenset()) -> str | None:
        """Make sure that base and adapter are loaded; gives the adapter's name, None for the base alone.

        Args:
            in_use: names of adapters that answers are being made with; they stay.
        """
        if not self.holds(subject):
            if subject["base_sha256"]:
                bases.require_same(subject["base"], subject["base_sha256"])
            on_status(f"Loading {subject['base']['id']}")
            self.__init__()
            models.free()
            recipe = Recipe(quantisation=subject["quantisation"])
            loaded = models.load_base(Path(subject["base"]["dir"]), recipe, how_to_load(subject))
            if models.linears_4bit(loaded.model) and loaded.plan["precision"] == "bfloat16" and decode.can_pack():
                decode.pack(loaded.model)
            self.model, self.tokenizer = loaded.model, loaded.tokenizer
            self.decoder = decode.build(self.model, own=True)
            self.key = self._key(subject)  # last: a base that could not be had whole is not held
            packed.give_back()
            self.base_id = subject["base"]["id"]
            self.note()
        if not tuned:
            return None
        folder = Path(subject["adapter_dir"])
        weights = folder / "adapter_model.safetensors"
        # With the time: a run that was stopped and resumed has new weights in the same folder.
        key = str(folder), weights.stat().st_mtime_ns if weights.is_file() else 0
        if key not in self.adapters:
            if subject["base_sha256"]:
                bases.require_same(subject["base"], subject["base_sha256"])
            on_status("Loading the adapter")
            idle = [its for its, name in self.adapters.items() if name not in in_use]
            if len(self.adapters) >= MOST_ADAPTERS and idle:
                name = self.adapters.pop(idle[0])
                self.model.delete_adapter(name)
                if self.decoder:
                    self.decoder.drop(name)
            name = f"adapter{max((int(its[7:]) for its in self.adapters.values()), default=-1) + 1}"
            self.model = models.load_adapter(self.model, folder, subject["base"]["id"], name)
            if self.decoder:
                self.decoder.take(name)
            self.adapters[key] = name
        self.adapters.move_to_end(key)
        return self.adapters[key]

    def note(self) -> None:
        """Let training know what this process takes, where it has grown."""
        gib = memory_gib()
        if self.base_id and gib > self.noted_gib + 0.02:
            room.note(self.base_id, gib)
            self.noted_gib = gib

    def use(self, name: str | None) -> None:
        """Let the next forward pass be the base's, or the named adapter's."""
        if not self.adapters:
            return
        if name is None:
            self.model.base_model.disable_adapter_layers()
        else:
            self.model.base_model.enable_adapter_layers()
            self.model.set_adapter(name)


def memory_gib() -> float:
    """What this process holds now: on the card where there is one, else in memory."""
    if torch.cuda.is_available():
        return torch.cuda.memory_reserved() / 2**30
    return psutil.Process().memory_info().rss / 2**30


def choices(subject: dict) -> dict:
    """What of a run's plan its chat follows.

    On a CPU: the precision and which layers stayed in 16 bits. Not the attention routine, nor whether 4-bit weights were
    unpacked for training: those are choices for speed in training, and here packed weights are faster and four times
    smaller. So the runs on one base share it.
    """
    if models.device_name() != "cpu":
        return subject["plan"]
    return {name: subject["plan"][name] for name in ("precision", "kept_16bit") if name in subject["plan"]}


def how_to_load(subject: dict) -> dict:
    """The plan for `models.load_base`."""
    plan = dict(choices(subject))
    if models.device_name() == "cpu":
        plan["attention"] = "sdpa"
        plan.setdefault("precision", models.choose_precision("cpu"))
        if subject["quantisation"] == "nf4" and plan["precision"] == "bfloat16" and decode.can_pack():
            plan["dequantised"] = False
    return plan


def say(number: int, **reply) -> None:
    sys.stdout.write(json.dumps({"id": number, **reply}) + "\n")
    sys.stdout.flush()


def begin(resident: Resident, request: dict, in_use: set = frozenset()) -> tuple[answer.Answer, str | None]:
    """The answer that the request asks for, ready to be advanced."""
    number = request["id"]
    name = resident.bring(request["subject"], request["tuned"], lambda text: say(number, status=text), in_use)
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
    decoder = resident.decoder if resident.decoder and (name is None or resident.decoder.adapters.get(name)) else None
    return answer.Answer(resident.model, tokenizer, prompt, stops, sampling, decoder, name), name


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
    look_again = 0.0
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
            if going and not resident.holds(its["subject"]):
                break
            waiting.remove(its)
            in_use = {name for _, name in going.values()}
            room.say_answering(room.LOADS_S)
            guarded(its["id"], going, lambda its=its, in_use=in_use: going.__setitem__(its["id"], begin(resident, its, in_use)))
        if going and time.monotonic() > look_again:
            room.say_answering()
            use_cores()
            look_again = time.monotonic() + LOOK_S
        advance(resident, going)


def use_cores() -> None:
    """All cores; half of them while a run trains: its threads and these would wait for one another."""
    cores = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    wanted = max(1, cores // 2) if any(not its.spare for its in lease.tickets()) else cores
    if torch.get_num_threads() != wanted:
        torch.set_num_threads(wanted)


def advance(resident: Resident, going: dict) -> None:
    """One token of every answer; of one that is at its prompt, the next part of that."""
    together = [number for number, (making, _) in going.items() if making.decoder and not making.reads]
    alone = [number for number in going if number not in together]
    try:
        step(resident, going, together)
    except (RuntimeError, MemoryError, ValueError, IndexError):
        alone = together + alone  # one by one: whoever it was that failed, the others go on
    for number in alone:
        guarded(number, going, lambda number=number: step(resident, going, [number]))


def step(resident: Resident, going: dict, numbers: list[int]) -> None:
    """One token of these answers: several over the decoder, or one over the model's own forward."""
    makings = [going[number][0] for number in numbers]
    if makings and not makings[0].decoder:
        resident.use(going[numbers[0]][1])
    for number, making, piece in zip(numbers, makings, answer.advance(makings)):
        if piece:
            say(number, piece=piece)
        if making.finished:
            del going[number]
            resident.note()
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
        traceback.print_exc()  # without its message, which may quote somebody: see `redaction.Redacted`
        say(number, error=f"The model could not answer ({type(error).__name__}). Clear the conversation and try again.")


if __name__ == "__main__":
    redaction.install(hide_messages=True)  # its log is one for all visitors
    use_cores()
    serve(float(sys.argv[1]))
