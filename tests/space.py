"""The app as a Space serves it, in a process of its own, and visitors to it who speak HTTP as a browser's page does, or as an attacker."""

import http.client
import json
import os
import random
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from tests.stand_in_hub import StandInHub

ROOT = Path(__file__).resolve().parent.parent
HOST = "tuner-test.hf.space"


class Space:
    """The app, served to strangers who sign in at the stand-in Hub.

    Args:
        home: for everything that it keeps.
        env: more of its environment.
    """

    def __init__(self, home: Path, hub: StandInHub, **env: str):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.home, self.hub = home, hub
        self.made: dict[str, dict] = {}  # owner -> what a test put there for them
        self.env = {
            **{name: os.environ[name] for name in ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH") if name in os.environ},
            "TUNER_HOME": str(home / "tuner"), "HF_HOME": str(home / "hf"), "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1",
            "GRADIO_SERVER_PORT": str(self.port), "GRADIO_TEMP_DIR": str(home / "gradio"), "NO_PROXY": "127.0.0.1",
            "SYSTEM": "spaces", "SPACE_ID": "owner/tuner", "SPACE_HOST": HOST, **hub.sign_in.environment(), **env,
        }

    def __enter__(self) -> "Space":
        self.log = open(self.home / "app.log", "ab")
        self.process = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=self.env, stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + 60
        while True:
            try:
                Visitor(self).get("/config")
                return self
            except OSError:
                assert self.process.poll() is None, (self.home / "app.log").read_text()
                assert time.monotonic() < deadline, "the app did not come up in a minute"
                time.sleep(0.1)

    def __exit__(self, *_) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


class Answer:
    """What came back: status, headers, and the body as text."""

    def __init__(self, response: http.client.HTTPResponse, body: bytes):
        self.status, self.headers, self.body = response.status, response.headers, body
        self.text = body.decode("utf-8", "replace")

    def json(self):
        return json.loads(self.body)


class Visitor:
    """One browser. Secure cookies are kept and sent back as over https, which a Space's visitors use.

    Args:
        cookies: whether it keeps any.
    """

    def __init__(self, space: Space, cookies: bool = True):
        self.space, self.keeps_cookies = space, cookies
        self.cookies: dict[str, str] = {}
        self.browser_id = f"{random.getrandbits(128):032x}"
        self.session = _new_session()
        self.heard: list = []  # everything that came of the last event

    # Plain requests -----------------------------------------------------------------------------------------------

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.space.port, timeout=30)
        try:
            connection.request(method, path, body, self._headers(headers))
            response = connection.getresponse()
            try:
                body = response.read()
            except http.client.IncompleteRead as cut:  # a stream that Gradio breaks off
                body = cut.partial
            answer = Answer(response, body)
        finally:
            connection.close()
        self._keep(response)
        return answer

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)

    def post(self, path: str, content) -> Answer:
        return self.ask("POST", path, json.dumps(content).encode(), content_type="application/json")

    def upload(self, name: str, content: bytes) -> Answer:
        """One file, as the page sends it."""
        mark = "----tuner"
        head = f'--{mark}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\nContent-Type: text/plain\r\n\r\n'
        return self.ask(
            "POST", "/gradio_api/upload", head.encode() + content + f"\r\n--{mark}--\r\n".encode(),
            content_type=f"multipart/form-data; boundary={mark}",
        )

    def _headers(self, headers: dict[str, str]) -> dict[str, str]:
        sent = {"Host": HOST, **{name.replace("_", "-"): value for name, value in headers.items()}}
        if self.cookies:
            sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        return sent

    def _keep(self, response: http.client.HTTPResponse) -> None:
        for line in response.headers.get_all("set-cookie") or [] if self.keeps_cookies else []:
            name, _, value = line.split(";")[0].partition("=")
            self.cookies[name] = value
            if re.search(r"expires=Thu, 01 Jan 1970|max-age=0", line, re.IGNORECASE):
                del self.cookies[name]

    # As the page does ---------------------------------------------------------------------------------------------

    def sign_in(self, user: str) -> "Visitor":
        """Through the Hub's pages and back, as that user."""
        to_hub = self.get("/login/huggingface").headers["location"]
        assert to_hub.startswith(self.space.hub.url)
        hub = urlsplit(to_hub)
        connection = http.client.HTTPConnection(hub.hostname, hub.port, timeout=30)
        connection.request("GET", f"{hub.path}?{hub.query}&user={user}")
        back = urlsplit(connection.getresponse().headers["location"])
        connection.close()
        assert back.netloc == HOST and back.scheme == "https"
        assert self.get(f"{back.path}?{back.query}").status in (302, 307)
        self.session = _new_session()  # the page is loaded anew
        return self

    def open(self, query: str = "") -> "Visitor":
        """Load the page, and run what it runs when it is loaded."""
        assert self.get("/" + query).status == 200
        self.config = self.get("/config" + query).json()
        self.query = query
        self.components = {its["id"]: its for its in self.config["components"]}
        self.values = {its["id"]: its["props"].get("value") for its in self.config["components"]}
        self.values |= {its["id"]: self.browser_id for its in self.config["components"] if its["type"] == "browserstate"}
        loads = [its for its in self.config["dependencies"] if any(event == "load" for _, event in its["targets"])]
        for its in loads:
            self.run(its)
        self.browser_id = self.values[self.id_of_browser()]  # what the browser keeps
        return self

    def id_of(self, elem_id: str) -> int:
        return next(its["id"] for its in self.config["components"] if its["props"].get("elem_id") == elem_id)

    def id_of_browser(self) -> int:
        return next(its["id"] for its in self.config["components"] if its["type"] == "browserstate")

    def name_of(self, event: dict) -> str:
        """What starts it, such as "start click"."""
        return " ".join(f"{self.components.get(its, {}).get('props', {}).get('elem_id', its)} {name}" for its, name in event["targets"])

    def events(self) -> list[dict]:
        """All that the server runs for whoever asks."""
        return [its for its in self.config["dependencies"] if its["backend_fn"]]

    def event(self, elem_id: str, name: str = "click") -> dict:
        """The first event of this kind of the component that runs something on the server."""
        target = self.id_of(elem_id)
        return next(its for its in self.events() if [target, name] in [list(pair) for pair in its["targets"]])

    def run(self, event: dict, **more) -> dict:
        """One event with what the page's components hold, and all that is chained to it; the first one's answer.

        Args:
            more: see `call`.
        """
        answer = self.call(event, **more)
        if answer.get("success"):
            self.take(event, answer["output"]["data"])
        for its in self.events():
            if its["trigger_after"] == event["id"] and (answer.get("success") or not its["trigger_only_on_success"]):
                self.run(its)
        return answer

    def take(self, event: dict, data: list) -> None:
        """Hold what came back, as the components would."""
        for component, value in zip(event["outputs"], data, strict=True):
            if isinstance(value, dict) and value.get("__type__") == "update":
                value = value.get("value", self.values[component])
            self.values[component] = value

    def call(self, event: dict, session: str | None = None, data: list | None = None, do: str = "", values: dict | None = None) -> dict:
        """Run one event and wait for its end.

        Args:
            session: the session_hash that is claimed.
            data: in place of what the components hold.
            do: what a button inside a component says.
            values: component id -> what to send for it.

        Returns:
            the last message: {"success", "output": {"data": [...]}, ...}; or {"status", "refused": words}, where it was not taken.
        """
        session = session or self.session
        held = self.values | (values or {})
        body = {
            "data": data if data is not None else [None if self.components[its]["type"] == "state" else held[its] for its in event["inputs"]],
            "event_data": {"do": do} if do else None, "fn_index": event["id"], "trigger_id": event["targets"][0][0] if event["targets"] else None,
            "session_hash": session,
        }
        joined = self.post("/gradio_api/queue/join" + getattr(self, "query", ""), body)
        if joined.status != 200:
            self.heard = [joined.text]
            return {"success": False, "status": joined.status, "refused": joined.text}
        return self.wait(joined.json()["event_id"], session)

    def wait(self, event_id: str, session: str, seconds: float = 60.0) -> dict:
        self.heard = []
        for message in self.listen(session, seconds):
            self.heard.append(message)
            if message.get("event_id") == event_id and message["msg"] == "process_completed":
                return message
        raise AssertionError("the stream ended without the answer")

    def listen(self, session: str, seconds: float = 60.0):
        """The session's messages, as far as this visitor gets them."""
        connection = http.client.HTTPConnection("127.0.0.1", self.space.port, timeout=seconds)
        try:
            connection.request("GET", f"/gradio_api/queue/data?session_hash={session}", headers=self._headers({}))
            response = connection.getresponse()
            if response.status != 200:
                return
            for line in response:
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])
        except (TimeoutError, http.client.IncompleteRead):
            return
        finally:
            connection.close()


def _new_session() -> str:
    return "".join(random.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=11))
