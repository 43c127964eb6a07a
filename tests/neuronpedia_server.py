"""A server on this machine that takes uploads as Neuronpedia does, or fails as it is told to.

It checks a body by the rules of Neuronpedia's API (its yup schema and the checks behind that), written down here a
second time and independently of the package.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-np-secret"


def refusal(body: Any) -> str | None:
    """Why Neuronpedia's API refuses a body; None if it takes it."""
    if not isinstance(body, dict) or not all(isinstance(body.get(k), str) and body[k] for k in ("modelId", "source")):
        return "modelId and source are required"
    features = body.get("features")
    if not isinstance(features, list) or not 1 <= len(features) <= 128:
        return "1 to 128 features"
    if len({feature["index"] for feature in features}) != len(features):
        return "All indexes must be unique."
    return next((fault for feature in features if (fault := _feature_refusal(feature))), None)


def _feature_refusal(feature: dict[str, Any]) -> str | None:
    if not isinstance(feature["index"], int) or not 0 <= feature["index"] <= 10_000_000:
        return "index"
    if "density" in feature and not (_is_number(feature["density"]) and 0 <= feature["density"] <= 1):
        return "density"
    for name in ("topLogits", "bottomLogits"):
        logits = feature.get(name) or []
        if len(logits) > 20 or not all(logit["token"] and _is_number(logit["value"]) for logit in logits):
            return name
    windows = feature.get("activations")
    if not windows:
        return "activations"
    for window in windows:
        tokens, values = window["tokens"], window["values"]
        if not 1 <= len(tokens) <= 1024 or len(tokens) != len(values):
            return "tokens and values"
        if not all(isinstance(token, str) and token for token in tokens) or not all(map(_is_number, values)):
            return "tokens or values"
        share = window.get("quantileFraction")
        if share is not None and not 0 <= share <= 1:
            return "quantileFraction"
    return None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and value == value


class Server:
    """What the server was sent, what it holds, and how it answers next.

    `plan` is a list of what happens to the next uploads, in order: a status, "break" (the connection is cut before the
    body is taken), "lose" (the body is taken, then the connection is cut), "babble" (what comes back is no HTTP and
    repeats the key), or "ok", which also follows the last entry.
    """

    def __init__(self) -> None:
        self.plan: list[int | str] = []
        self.headers: dict[str, str] = {}
        self.answer = "The server is busy."
        self.uploads: list[tuple[str, bytes]] = []
        self.questions: list[str] = []
        self.windows: list[tuple[str, dict[str, Any]]] = []
        self.url = ""

    def take(self, body: dict[str, Any]) -> None:
        """Keep the windows of a body, each time that it comes, as Neuronpedia does."""
        for feature in body["features"]:
            place = f"{body['modelId']}/{body['source']}/{feature['index']}"
            self.windows += [(place, window) for window in feature["activations"]]


@contextmanager
def running_server() -> Iterator[Server]:
    """A server that runs while the block does."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            server.uploads.append((self.path, raw))
            step = server.plan.pop(0) if server.plan else "ok"
            if step == "break":
                self.close_connection = True
                self.connection.close()
            elif step == "babble":
                self.wfile.write(b"I was sent " + self.headers["x-api-key"].encode() + b"\r\n")
                self.close_connection = True
            elif isinstance(step, int):
                self.reply(step, {"error": server.answer})
            elif self.headers["x-api-key"] != KEY:
                self.reply(401, {"error": f"No such key: {self.headers['x-api-key']}"})
            elif fault := refusal(json.loads(raw)):
                self.reply(400, {"error": fault, "path": "features"})
            else:
                server.take(json.loads(raw))
                if step == "lose":
                    self.close_connection = True
                    self.connection.close()
                else:
                    self.reply(200, {"message": "features created."})

        def do_GET(self) -> None:
            server.questions.append(self.path)
            place = self.path.removeprefix("/api/feature/")
            held = [window for where, window in server.windows if where == place]
            self.reply(200, {"activations": held} if held else None)

        def reply(self, status: int, answer: Any) -> None:
            raw = json.dumps(answer).encode()
            self.send_response(status)
            for name, value in (server.headers if status != 200 else {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: Any) -> None:
            return

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            return

    http = Quiet(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
