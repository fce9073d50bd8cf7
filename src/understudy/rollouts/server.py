"""Asking a vLLM server over HTTP: what is asked, and what an answer must hold before anybody trains on it.

Nothing of vLLM is imported; it lives in an environment of its own. What is used of it: `/v1/models`, `/v1/completions`, and
of its development mode (`VLLM_SERVER_DEV_MODE=1`) `/collective_rpc` and `/reset_prefix_cache`.

N tokens of one sequence.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np

from understudy.errors import ConfigError, TrainingError
from understudy.rollouts.sampler import Limits

KEY_VARIABLE = "UNDERSTUDY_SERVER_TOKEN"
"""Environment variable with the server's key (`vllm serve --api-key`). It is sent and nothing else: not shown, not written."""
WAITS_SECONDS = (1.0, 5.0)
"""Before an unanswered request is made again. The same request asks for the same thing, so nothing is done twice."""
_BUSY = (429, 502, 503, 504)
"""HTTP statuses that pass: the server, or a proxy before it, cannot take the request now."""
_RESTART = "Restart it, and go on with --resume."

_OWN_LAW = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""The whole law, as it is. All are stated: what a request leaves open comes from the checkpoint's generation config."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """What a server says it serves."""

    name: str
    max_length: int | None
    """Most tokens of a prompt and its response together; None: it does not say."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a server wrote behind a prefix, and why it stopped there. `logp`: of its whole law at temperature 1."""

    token_ids: tuple[int, ...]
    logp: tuple[float, ...]
    finish: Literal["stop", "length"]
    stop_reason: int | str | None


@dataclass(frozen=True, kw_only=True)
class Server:
    """An address. Every request has a connection of its own, so any number may be under way."""

    url: str
    timeout_seconds: float

    def served(self) -> Served:
        """The one model it serves.

        Raises:
            TrainingError: it does not answer, or serves none or several.
        """
        found = self._json("GET", "/v1/models").get("data")
        if not isinstance(found, list) or not all(
            isinstance(m, dict) and _is_text(m.get("id")) for m in found
        ):
            raise self._odd("/v1/models", "no list of models")
        if len(found) != 1:
            names = ", ".join(model["id"] for model in found) or "none"
            raise TrainingError(
                f"the server {self.url} must serve one model, the student's; it serves {len(found)} ({names}). Start it with "
                "that one alone."
            )
        length = found[0].get("max_model_len")
        return Served(name=found[0]["id"], max_length=length if isinstance(length, int) else None)

    def complete(
        self,
        name: str,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int,
        temperature: float,
        limits: Limits,
        seed: int,
        salt: str,
    ) -> Answer:
        """Tokens behind a prefix, until one of the limits' end ids or stop strings, or `max_tokens` of them.

        Where a response ends is not decided here (see `sampler.recorded`): the server is told when to stop, so that it does not
        go on in vain. It is to stop at these ends alone, not at those that its own files name.

        Args:
            salt: answers share cached prefixes only with those of the same salt.
        Raises:
            TrainingError: no answer, or one that does not hold what was asked for.
        """
        choice = self._choice(
            {
                "model": name,
                "prompt": list(prompt_ids),
                "n": 1,
                "max_tokens": max_tokens,
                "temperature": temperature,
                **_OWN_LAW,
                "seed": seed,
                "stop": list(limits.stop_strings),
                "include_stop_str_in_output": True,
                "skip_special_tokens": False,
                "stop_token_ids": sorted(limits.eos_ids),
                "ignore_eos": True,
                "logprobs": 0,
                "return_token_ids": True,
                "cache_salt": salt,
            }
        )
        token_ids = choice.get("token_ids")
        if token_ids is None:
            raise TrainingError(
                f"the server {self.url} gave no token_ids, which return_token_ids asks for: it is too old. "
                "Use vLLM 0.15 or newer."
            )
        if not _are_ids(token_ids) or not 0 < len(token_ids) <= max_tokens:
            raise self._odd(
                "/v1/completions", f"token_ids that are not 1 to {max_tokens} ids: {_short(token_ids)}"
            )
        logp: Any = (choice.get("logprobs") or {}).get("token_logprobs")
        if not _are_finite(logp) or len(logp) != len(token_ids):
            raise self._odd(
                "/v1/completions",
                f"no finite log-probability for each of {len(token_ids)} tokens: {_short(logp)}",
            )
        return Answer(
            token_ids=tuple(token_ids),
            logp=tuple(map(float, logp)),
            finish=self._finish(choice, token_ids, limits),
            stop_reason=choice.get("stop_reason"),
        )

    def _finish(
        self, choice: Mapping[str, Any], token_ids: Sequence[int], limits: Limits
    ) -> Literal["stop", "length"]:
        """Why it stopped. A response whose end token was left out is refused: nobody knows the log-probability of that token,
        and to write another in its place would leave out the responses that end there."""
        finish, reason = choice.get("finish_reason"), choice.get("stop_reason")
        if finish == "length":
            return "length"
        if finish != "stop":
            raise TrainingError(
                f"the server {self.url} broke off a response (finish_reason = {_short(finish)}). Let nobody else pause or "
                "stop it, and go on with --resume."
            )
        last = token_ids[-1]
        is_there = _is_text(reason) or reason == last or (reason is None and last in limits.eos_ids)
        if not is_there:
            end = "its own end token" if reason is None else f"token {_short(reason)}"
            raise TrainingError(
                f"the server {self.url} ended a response at {end} and left that token out: its last one is {last}. "
                "Use vLLM 0.15 or newer, which knows ignore_eos and gives end tokens."
            )
        return "stop"

    def prompt_logp(self, name: str, token_ids: Sequence[int]) -> np.ndarray:
        """Log-probability of every token but the first, given those before it, [N - 1]. Computed anew, not from cached prefixes.

        Raises:
            TrainingError: no answer, or one without them.
        """
        asked = {"model": name, "prompt": list(token_ids), "max_tokens": 1, "temperature": 0.0, **_OWN_LAW}
        entries = self._choice({**asked, "prompt_logprobs": 1}).get("prompt_logprobs")
        if not isinstance(entries, list) or len(entries) != len(token_ids):
            raise self._odd(
                "/v1/completions", f"no prompt_logprobs for {len(token_ids)} tokens: {_short(entries)}"
            )
        found = [
            (entry.get(str(token)) or {}).get("logprob") if isinstance(entry, dict) else None
            for token, entry in zip(token_ids[1:], entries[1:], strict=True)
        ]
        if not _are_finite(found):
            raise self._odd(
                "/v1/completions", f"prompt_logprobs without the prompt's own tokens: {_short(found)}"
            )
        return np.array(found, dtype=np.float64)

    def load(self, folder: Path) -> None:
        """Let it take over the weights in a folder, and forget what it has cached of the old ones.

        Raises:
            TrainingError: it cannot; it may then hold the old weights, or some of the new.
        """
        asked = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        self._request("POST", "/collective_rpc", asked)
        self.forget_prefixes()

    def forget_prefixes(self) -> None:
        """Drop cached prefixes.

        Raises:
            TrainingError: it cannot.
        """
        self._request("POST", "/reset_prefix_cache", {})

    def _choice(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        choices = self._json("POST", "/v1/completions", asked).get("choices")
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            count = f"{len(choices)} choices" if isinstance(choices, list) else "no choices"
            raise self._odd("/v1/completions", f"{count} where one was asked for")
        return choices[0]

    def _json(self, verb: str, path: str, asked: Mapping[str, Any] | None = None) -> dict[str, Any]:
        text = self._request(verb, path, asked)
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise self._odd(
                path, f"something that is no JSON object: {_short(text.decode(errors='replace'))}"
            )
        return found

    def _odd(self, path: str, found: str) -> TrainingError:
        return TrainingError(
            f"the server {self.url} answered {path} with {found}. Is it vLLM 0.15 or newer? {_RESTART}"
        )

    def _request(self, verb: str, path: str, asked: Mapping[str, Any] | None = None) -> bytes:
        """The body of an answer with status 200; what may pass is tried again, after a while."""
        for wait in (*WAITS_SECONDS, None):
            try:
                status, text = self._send(verb, path, asked)
            except TimeoutError:
                raise TrainingError(
                    f"the server {self.url} gave no answer to {verb} {path} within {self.timeout_seconds:g} seconds. Raise "
                    "rollouts.server_timeout_seconds if it is only slow, and go on with --resume."
                ) from None
            except (OSError, http.client.HTTPException, UnicodeError) as error:  # UnicodeError: no host name
                if wait is None:
                    raise TrainingError(
                        f"the server {self.url} does not answer {verb} {path} ({type(error).__name__}: {error}; tried "
                        f"{len(WAITS_SECONDS) + 1} times). Start it, and go on with --resume."
                    ) from None
            else:
                if status == 200:
                    return text
                if wait is None or status not in _BUSY:
                    raise self._refused(verb, path, status, text)
            time.sleep(wait)
        raise AssertionError("the last round returns or raises")

    def _send(self, verb: str, path: str, asked: Mapping[str, Any] | None) -> tuple[int, bytes]:
        # http.client goes to this address and to no other: no proxy of the environment, no redirect that would carry the key on.
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        # Named: without a port http.client looks for one behind the last colon of the host, which an IPv6 address has.
        port = parts.port or kind.default_port
        connection = kind(parts.hostname or "", port, timeout=self.timeout_seconds)
        headers = {"Content-Type": "application/json", **_authorization()}
        try:
            connection.request(verb, path, None if asked is None else json.dumps(asked), headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def _refused(self, verb: str, path: str, status: int, text: bytes) -> TrainingError:
        what = f"the server {self.url} answered {verb} {path} with HTTP {status}"
        if status in (401, 403):
            return TrainingError(f"{what}. Put its key into the environment variable {KEY_VARIABLE}.")
        if status == 404 and not path.startswith("/v1/"):
            return TrainingError(
                f"{what}. Start it with VLLM_SERVER_DEV_MODE=1, without which it takes no new weights."
            )
        if path == "/collective_rpc":
            return TrainingError(
                f"{what}: {_message(text)}. Is it vLLM 0.15 or newer, does it serve the student's architecture, and does it see "
                "rollouts.server_weights under the same path? Its log says more."
            )
        return TrainingError(f"{what}: {_message(text)}. Its log says more.")


def _authorization() -> dict[str, str]:
    key = os.environ.get(KEY_VARIABLE, "")
    if not key:
        return {}
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(f"{KEY_VARIABLE} must be printable ASCII without spaces. Set it again.")
    return {"Authorization": f"Bearer {key}"}


def _message(text: bytes) -> str:
    """What an error answer says, in one line: vLLM's own words where it gives some."""
    said: Any = text.decode(errors="replace")
    try:
        found = json.loads(said)
        inner = found.get("error", found)
        said = inner.get("message", said) if isinstance(inner, dict) else inner
    except (ValueError, AttributeError):
        pass
    return _short(said).rstrip(".") or "nothing said"


def _short(found: object) -> str:
    text = " ".join(str(found).split())
    return text if len(text) <= 300 else f"{text[:300]} ..."


def _is_text(found: object) -> bool:
    return isinstance(found, str)


def _are_ids(found: object) -> bool:
    return isinstance(found, list) and all(type(x) is int and x >= 0 for x in found)


def _are_finite(found: Any) -> bool:
    return isinstance(found, list) and all(type(x) in (int, float) and math.isfinite(x) for x in found)
