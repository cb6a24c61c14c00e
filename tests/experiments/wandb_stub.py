"""A stand-in for the wandb service on this machine: it keeps one sweep, hands out its runs, takes no data."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Service:
    """What the service was told.

    Attributes:
        runs: values of the parameters of the runs to hand out, one run at a time.
        url: where it listens.
        config: the sweep as it was uploaded, yaml.
        operations: names of the requests, in order.
        handed: ids of the runs that were handed out.
    """

    runs: Sequence[dict[str, Any]]
    url: str = ""
    config: str = ""
    operations: list[str] = field(default_factory=list)
    handed: list[str] = field(default_factory=list)

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Answer one GraphQL request."""
        operation = re.search(r"(?:query|mutation)\s+(\w+)", query)
        name = operation[1] if operation else "?"
        self.operations.append(name)
        project = {"id": "p", "name": "amc-search", "entity": {"id": "e", "name": "me"}}
        match name:
            case "Viewer":
                viewer = {
                    "id": "u",
                    "entity": "me",
                    "username": "me",
                    "email": "me@example.org",
                    "flags": "{}",
                }
                return {"viewer": {**viewer, "admin": False, "teams": {"edges": []}}}
            case "UpsertSweep":
                self.config = variables["config"]
                return {
                    "upsertSweep": {
                        "sweep": {"name": "sw", "project": project},
                        "configValidationWarnings": [],
                    }
                }
            case "SweepWithRuns":
                return {
                    "project": {
                        "sweep": {"id": "s", "name": "sw", "config": self.config, "runs": {"edges": []}}
                    }
                }
            case "CreateAgent":
                return {"createAgent": {"agent": {"id": "a"}}}
            case "Heartbeat":
                busy = bool(json.loads(variables["runState"]))
                commands = [] if busy else self._next()
                return {"agentHeartbeat": {"agent": {"id": "a"}, "commands": json.dumps(commands)}}
            case _:
                return {}

    def _next(self) -> list[dict[str, Any]]:
        if len(self.handed) == len(self.runs):
            return [{"type": "exit"}]
        values = self.runs[len(self.handed)]
        self.handed.append(f"run{len(self.handed)}")
        arguments = {name: {"value": value} for name, value in values.items()}
        return [{"type": "run", "run_id": self.handed[-1], "program": "amc", "args": arguments}]


@contextmanager
def wandb_service(runs: Sequence[dict[str, Any]]) -> Iterator[Service]:
    """Serve on a free port of the loopback device."""
    service = Service(runs)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
            data = service.answer(asked.get("query", ""), asked.get("variables") or {})
            body = json.dumps({"data": data}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        service.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield service
        finally:
            server.shutdown()
            thread.join()
