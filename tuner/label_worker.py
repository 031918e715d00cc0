"""The process that labels what visitors try: holds one tuned classifier, answers one line of JSON with another."""

import json
import select
import sys
import traceback

import torch

from tuner import chat, redaction, room
from tuner.chat_worker import memory_gib, use_cores
from tuner.errors import UserError
from tuner.tasks.label_try import Worker


def answer(worker: Worker, asked: dict) -> dict:
    """{"found": see `Worker.look`}, or {"refused": problems}."""
    try:
        subject = chat.Subject(**asked["subject"])
        found = worker.look(subject, asked["values"], asked["explained"])
        room.note(subject.base["id"], memory_gib())
        return {"found": found}
    except UserError as error:
        return {"refused": error.problems}
    except (MemoryError, torch.OutOfMemoryError):
        return {"refused": ["There is not enough memory for this. Try less at once, or wait for a run to end."]}
    except (RuntimeError, ValueError, KeyError, IndexError, TypeError, OSError) as error:
        traceback.print_exc()  # without its message, which may quote somebody: see `redaction.Redacted`
        worker.subject = None  # half of another may be in memory
        return {"refused": [f"The model could not label this ({type(error).__name__}). Try something else."]}


def serve(idle_s: float) -> None:
    """Answer until nothing was asked for a while, or standard input closes: the app is gone, so is its worker."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    with Worker() as worker:
        while select.select([sys.stdin], [], [], idle_s)[0]:
            line = sys.stdin.readline()
            if not line:
                return
            use_cores()
            answers.write(json.dumps(answer(worker, json.loads(line))) + "\n")
            answers.flush()


if __name__ == "__main__":
    redaction.install(hide_messages=True)  # its log is one for all visitors
    serve(float(sys.argv[1]))
