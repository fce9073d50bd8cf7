"""A server of our own that speaks what we use of vLLM's protocol, on loopback, with a small model from a folder of safetensors.

It shares no code with the client nor with our sampler: the model runs over the whole prefix for every token, and draws with a
generator of the request's seed. It keeps prefixes as vLLM does, by salt and tokens, and computes with the weights that a prefix
was read with until it is told to forget them.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from understudy.models import quiet_transformers

NEUTRAL = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
NEUTRAL |= {"presence_penalty": 0.0, "frequency_penalty": 0.0}

Writer = Callable[[Sequence[int], int], tuple[int, float]]
"""(prefix, how many tokens this answer has) -> the next token and its log-probability."""


def load(folder: str | Path) -> Any:
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.known = {}  # prefix -> logits of the next token: these weights' answers do not change
    return model


@dataclass(kw_only=True)
class FakeVLLM:
    """`with FakeVLLM(folder=...) as server:` serves at `server.url`. What is wrong with it may be changed while it runs."""

    folder: Path
    script: Writer | None = None
    """Writes in the model's place."""
    decode: Callable[[Sequence[int]], str] | None = None
    own_eos: frozenset[int] = frozenset()
    """Ends by its own files, where the request does not say ignore_eos."""
    always_ends: frozenset[int] = frozenset()
    """Ends whatever the request says, as a model's own default stop_token_ids."""
    cap: int | None = None
    """Most tokens of an answer, as a generation config may have it."""
    key: str | None = None
    dev_mode: bool = True
    names: tuple[str, ...] = ("student",)
    max_model_len: int = 4096
    is_stale: bool = False
    """reload_weights reads what it began with, as an old server would."""
    resets: bool = True
    salts: bool = True
    ignores_stops: bool = False
    fault: Callable[[str, dict[str, Any]], str | None] = lambda path, asked: None
    """Which fault this request meets; see `_Handler`. None: it is answered."""
    slow_seconds: float = 0.0
    reloads: list[str] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    """Completions, as they were asked for."""
    headers: list[dict[str, str]] = field(default_factory=list)

    def __enter__(self) -> FakeVLLM:
        self.model = load(self.folder)
        self.prefixes: dict[tuple[Any, ...], Any] = {}
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"fake": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        return self

    def __exit__(self, *exc: object) -> None:
        self.http.shutdown()
        self.http.server_close()

    def rpc(self, asked: dict[str, Any]) -> None:
        assert asked["method"] == "reload_weights"
        path = asked["kwargs"]["weights_path"]
        model = load(self.folder if self.is_stale else path)
        shapes = [{n: p.shape for n, p in m.state_dict().items()} for m in (model, self.model)]
        if shapes[0] != shapes[1]:
            raise ValueError("size mismatch")
        with self.lock:
            self.model = model
            self.reloads.append(path)

    def complete(self, asked: dict[str, Any]) -> dict[str, Any]:
        prompt = asked["prompt"]
        with self.lock:
            self.asked.append(asked)
            key = (asked.get("cache_salt") if self.salts else None, *prompt)
            model = self.model if "prompt_logprobs" in asked else self.prefixes.setdefault(key, self.model)
            choice = (
                self._prompt(model, prompt) if "prompt_logprobs" in asked else self._written(model, asked)
            )
        return {"object": "text_completion", "choices": [{"index": 0, "text": "", **choice}]}

    @torch.no_grad()
    def _prompt(self, model: Any, prompt: list[int]) -> dict[str, Any]:
        logp_TV = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
        entries: list[Any] = [None]
        for t, token in enumerate(prompt[1:]):
            best = int(logp_TV[t].argmax())
            entries.append(
                {str(i): {"logprob": logp_TV[t, i].item(), "decoded_token": "?"} for i in (best, token)}
            )
        return {"prompt_logprobs": entries, "finish_reason": "length", "stop_reason": None}

    def _written(self, model: Any, asked: dict[str, Any]) -> dict[str, Any]:
        token_ids: list[int] = []
        logps: list[float] = []
        draws = torch.Generator().manual_seed(asked["seed"])
        finish, reason = "length", None
        for _ in range(min(asked["max_tokens"], self.cap or asked["max_tokens"])):
            prefix = [*asked["prompt"], *token_ids]
            if self.script is not None:
                token, logp = self.script(prefix, len(token_ids))
            else:
                token, logp = self._draw(model, prefix, asked, draws)
            token_ids.append(token)
            logps.append(logp)
            ends = frozenset() if self.ignores_stops else frozenset(asked.get("stop_token_ids", ()))
            if token in self.own_eos and not asked.get("ignore_eos", False):
                finish = "stop"
                break
            if token in ends | self.always_ends:
                finish, reason = "stop", token
                break
            if asked.get("stop") and not self.ignores_stops:
                assert self.decode is not None
                said = self.decode(token_ids)
                reason = next((s for s in asked["stop"] if s in said), None)
                if reason is not None:
                    finish = "stop"
                    break
        choice = {"finish_reason": finish, "stop_reason": reason, "logprobs": {"token_logprobs": logps}}
        return {**choice, **({"token_ids": token_ids} if asked.get("return_token_ids") else {})}

    @torch.no_grad()
    def _draw(
        self, model: Any, prefix: list[int], asked: dict[str, Any], draws: torch.Generator
    ) -> tuple[int, float]:
        if tuple(prefix) not in model.known:
            model.known[tuple(prefix)] = model(torch.tensor([prefix])).logits[0, -1]
        logit_V = model.known[tuple(prefix)]
        logp_V = logit_V.log_softmax(-1)
        # What a request leaves open comes from a generation config that is far from neutral: it then writes greedily.
        is_whole = all(asked.get(name) == value for name, value in NEUTRAL.items())
        if asked["temperature"] == 0 or not is_whole:
            token = int(logp_V.argmax())
        else:
            prob_V = (logit_V / asked["temperature"]).softmax(-1)
            token = int(torch.multinomial(prob_V, 1, generator=draws))
        return token, logp_V[token].item()


class _Handler(BaseHTTPRequestHandler):
    """Faults: drop, 500, 503, garbage, slow, and for completions no-ids, two, none, nan, short, outside, no-end, abort."""

    fake: FakeVLLM
    disable_nagle_algorithm = True  # an answer is sent in two parts, and the second would wait

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}"))

    def _answer(self, asked: dict[str, Any]) -> None:
        fake = self.fake
        fake.headers.append(dict(self.headers))
        fault = fake.fault(self.path, asked)
        if fault == "drop":
            self.close_connection = True
            self.connection.close()
            return
        if fault == "slow":
            time.sleep(fake.slow_seconds)
        if (
            self.path.startswith("/v1/")
            and fake.key
            and self.headers["Authorization"] != f"Bearer {fake.key}"
        ):
            self._send(401, {"error": "Unauthorized"})
        elif fault in ("500", "503"):
            self._send(int(fault), {"error": {"message": "EngineCore encountered an issue", "code": 500}})
        elif fault == "garbage":
            self._send(200, b"<html>It works!</html>")
        else:
            self._route(asked, fault)

    def _route(self, asked: dict[str, Any], fault: str | None) -> None:
        fake = self.fake
        if self.path == "/v1/models":
            models = [{"id": name, "max_model_len": fake.max_model_len} for name in fake.names]
            self._send(200, {"object": "list", "data": models})
        elif self.path == "/v1/completions":
            self._complete(asked, fault)
        elif self.path == "/collective_rpc" and fake.dev_mode:
            try:
                fake.rpc(asked)
                self._send(200, {"results": [None]})
            except (OSError, ValueError) as error:
                self._send(500, {"error": {"message": str(error)}})
        elif self.path == "/reset_prefix_cache" and fake.dev_mode:
            if fake.resets:
                fake.prefixes.clear()
            self._send(200, b"")
        else:
            self._send(404, {"detail": "Not Found"})

    def _complete(self, asked: dict[str, Any], fault: str | None) -> None:
        rows = self.fake.model.get_output_embeddings().weight.shape[0]
        if asked["model"] != self.fake.names[0] or max(asked["prompt"]) >= rows:
            message = (
                "The model does not exist."
                if max(asked["prompt"]) < rows
                else "Token id is out of vocabulary."
            )
            self._send(400, {"error": {"message": message}})
            return
        found = self.fake.complete(asked)
        choice = found["choices"][0]
        if fault == "no-ids":
            choice.pop("token_ids")
        elif fault == "two":
            found["choices"].append(choice)
        elif fault == "none":
            found["choices"] = None
        elif fault == "nan":
            choice["logprobs"]["token_logprobs"][-1] = float("nan")
        elif fault == "short":
            choice["logprobs"]["token_logprobs"].pop()
        elif fault == "outside":
            choice["token_ids"][0] = rows
        elif fault == "no-end" and choice["finish_reason"] == "stop":
            choice["token_ids"].pop()
            choice["logprobs"]["token_logprobs"].pop()
        elif fault == "abort":
            choice["finish_reason"] = "abort"
        self._send(200, found)

    def _send(self, status: int, body: dict[str, Any] | bytes) -> None:
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)
        except OSError:  # whoever asked has gone
            pass
