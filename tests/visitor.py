"""A visitor without a browser: sends what the page's own client sends, and reads what it reads."""

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx


class Refused(Exception):
    """The page said that something did not work; its words."""


class QueueFull(Refused):
    """The page has too many waiting."""


def sign_in(url: str, user: str, on_received: Callable[[bytes], None] = lambda body: None) -> httpx.Client:
    """The client of somebody who signed in on the Hub's pages, as the app on a Space sends them there and back.

    Cookies for https are kept and sent as over https, which a Space's visitors use.

    Args:
        on_received: called with the headers of every answer.
    """
    cookies: dict[str, str] = {}

    def send(request: httpx.Request) -> None:
        request.headers["cookie"] = "; ".join(f"{name}={value}" for name, value in cookies.items())

    def hear(answer: httpx.Response) -> None:
        on_received(repr(answer.headers.multi_items()).encode())
        for line in answer.headers.get_list("set-cookie"):
            name, _, value = line.split(";")[0].partition("=")
            cookies[name] = value
            if "expires=Thu, 01 Jan 1970" in line:
                del cookies[name]

    client = httpx.Client(timeout=120, event_hooks={"request": [send], "response": [hear]})
    client.get(url + "/")
    to_hub = client.get(url + "/login/huggingface").headers["location"]
    back = urlsplit(httpx.get(f"{to_hub}&user={user}").headers["location"])
    assert back.scheme == "https" and back.path == "/login/callback", back
    arrived = client.get(f"{url}{back.path}?{back.query}")
    assert arrived.status_code in (302, 307) and not arrived.headers["location"].startswith("/login"), arrived.headers["location"]
    client.follow_redirects = True
    return client


@dataclass
class Answer:
    """What a handler gave.

    Args:
        data: its outputs.
        first_s: seconds until the first of them was here; a generator gives more later.
        took_s: until the last.
    """

    data: list
    first_s: float
    took_s: float


class Visitor:
    """One visit of the page: components' values are sent as a browser sends them, answers are read from the stream.

    Args:
        browser_id: what the browser keeps of an earlier visit; "" for a new one.
        on_received: called with every body and every line of a stream that comes in.
        client: one that is signed in already; else a new one without cookies.
    """

    def __init__(self, url: str, browser_id: str = "", on_received: Callable[[bytes], None] = lambda body: None, client: httpx.Client | None = None):
        self.client = client or httpx.Client(timeout=120, follow_redirects=True)
        self.url, self.on_received = url, on_received
        self.on_received(self._get("/").content)
        self.config = json.loads(self._get("/config").content)
        self.session = uuid.uuid4().hex
        # States are kept by the server; a browser sends null for them.
        self.values = {its["id"]: its["props"].get("value") for its in self.config["components"] if its["type"] != "state"}
        self.browser = next(its["id"] for its in self.config["components"] if its["type"] == "browserstate")
        self.values[self.browser] = browser_id

    def _get(self, path: str) -> httpx.Response:
        answer = self.client.get(self.url + path)
        self.on_received(repr(answer.headers.multi_items()).encode() + answer.content)
        answer.raise_for_status()
        return answer

    def id_of(self, elem_id: str) -> int:
        return next(its["id"] for its in self.config["components"] if its["props"].get("elem_id") == elem_id)

    def put(self, elem_id: str, value) -> None:
        """Fill in a control of the page."""
        self.values[self.id_of(elem_id)] = value

    def shown(self, elem_id: str):
        """What a control holds now."""
        return self.values[self.id_of(elem_id)]

    def do(self, name: str, target: str | None = None, event_data: object = None) -> Answer:
        """Trigger the page's handler of this name.

        Args:
            target: where several share a name: the event, the elem_id of the control that it belongs to, or of one that it changes.

        Raises:
            Refused: the page says that it did not work.
        """
        ids = {its["id"]: its["props"].get("elem_id") for its in self.config["components"]}
        its = next(
            its for its in self.config["dependencies"] if (its["api_name"] or "").rstrip("_0123456789") == name
            and (target is None or target in {ids.get(number) for number in its["outputs"]} or any(target in (event, ids.get(number)) for number, event in its["targets"]))
        )
        body = {
            "data": [self.values.get(number) for number in its["inputs"]], "fn_index": its["id"], "session_hash": self.session,
            "event_data": event_data, "trigger_id": its["targets"][0][0] if its["targets"] else None,
        }
        began = time.perf_counter()
        if not its["queue"]:  # answered on the spot, with the request itself
            answer = self.client.post(self.url + "/gradio_api/run/predict", json=body)
            self.on_received(answer.content)
            output = answer.json()
            if answer.status_code != 200:
                raise Refused(str(output.get("error") or output))
            for number, value in zip(its["outputs"], output["data"]):
                self._keep(number, value)
            took_s = time.perf_counter() - began
            return Answer(output["data"], took_s, took_s)
        joined = self.client.post(self.url + "/gradio_api/queue/join", json=body)
        self.on_received(joined.content)
        if joined.status_code == 503 and b"Queue is full" in joined.content:
            raise QueueFull(joined.json()["detail"])
        joined.raise_for_status()
        first_s, output = self._read(joined.json()["event_id"], began)
        if not output["success"]:
            raise Refused(str(output["output"].get("error") or output["output"]))
        for number, value in zip(its["outputs"], output["output"]["data"]):
            self._keep(number, value)
        return Answer(output["output"]["data"], first_s, time.perf_counter() - began)

    def _keep(self, number: int, value) -> None:
        if number not in self.values:
            return
        if not (isinstance(value, dict) and value.get("__type__") == "update"):
            self.values[number] = value
        elif "value" in value:
            self.values[number] = value["value"]

    def _read(self, event_id: str, began: float) -> tuple[float, dict]:
        """Seconds until the first output, and the last message of this event."""
        first_s = 0.0
        with self.client.stream("GET", self.url + "/gradio_api/queue/data", params={"session_hash": self.session}) as stream:
            for line in stream.iter_lines():
                self.on_received(line.encode())
                if not line.startswith("data:"):
                    continue
                message = json.loads(line[5:])
                if message.get("event_id") != event_id:
                    continue
                if message["msg"] in ("process_generating", "process_completed"):
                    first_s = first_s or time.perf_counter() - began
                if message["msg"] == "process_completed":
                    return first_s, message
        raise AssertionError("The page's stream ended without an answer.")
