"""Something to label in, labels with their probabilities out, through a worker process of their own."""

import json
import signal
import subprocess
import threading
from dataclasses import asdict

from tuner import child, eyes, room, tasks
from tuner.chat import IDLE_S, Subject
from tuner.errors import UserError, shorten
from tuner.home import private_dir, tuner_home

# What is taken at once, and of how much of it is shown what mattered, which takes a pass for every part.
MOST_ITEMS, MOST_EXPLAINED = 32, 8
# How long one question may take, a model's loading included.
MOST_S = 180.0


class Labeller:
    """The process: started at first use, restarted after a crash, ended when idle. Those who ask are answered one after another.

    Args:
        idle_s: how long it is kept that nobody asks anything.
    """

    def __init__(self, idle_s: int = IDLE_S):
        self.idle_s = idle_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None

    def look(self, subject: Subject, values: list, explain: bool = True) -> list[dict]:
        """What the tuned classifier says of each value; see `tasks.label_try.Worker.look`.

        Raises:
            UserError: too much at once, nothing to label, or a model that cannot be loaded.
        """
        if not values:
            raise UserError("There is nothing to label. Write or bring something first.")
        size, most = len(json.dumps(values)), tasks.get(subject.task).MOST_TRIED
        if len(values) > MOST_ITEMS or size > most:
            raise UserError(f"That is {len(values):,} at once with {size:,} characters; the most is {MOST_ITEMS} and {most:,}. Bring fewer.")
        room.require_for_chat(subject.base, subject.quantisation)
        question = json.dumps({"subject": asdict(subject), "values": values, "explained": MOST_EXPLAINED if explain else 0})
        with self._lock:
            for _ in range(2):  # it may have ended by itself just now, having been idle for long
                line, code = self._ask(question)
                if line or code:
                    break
        if not line:
            raise self._died(subject, code)
        answer = json.loads(line)
        if "refused" in answer:
            raise UserError(*answer["refused"])
        return answer["found"]

    def _ask(self, question: str) -> tuple[str, int | None]:
        """The answer's line, or "" and the exit code of the process that gave none."""
        process = self._process
        if process is None or process.poll() is not None:
            log = private_dir(tuner_home()) / "labels.log"
            process = self._process = child.converse("tuner.label_worker", str(self.idle_s), log=log)
        line, code = child.ask(process, question, MOST_S)
        if not line:
            self._process, self._ended = None, process.pid
        return line, code

    def _died(self, subject: Subject, code: int) -> UserError:
        """Why there was no answer."""
        if room.gave_way(self._ended):
            return UserError(f"{shorten(subject.base['id'])} was closed to make room for a run that trains now. Try again later.")
        if code == child.OUT_OF_TIME:
            return eyes.died(code)
        why = f"took longer than {MOST_S:.0f} seconds" if code == -signal.SIGKILL else "ended in the middle"
        return UserError(f"The process that labels {why} (it may have run out of memory). Try again with less; it starts anew.")

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process and process.poll() is None:
            child.end(process)
