"""``apportion ask``: one question to a running proxy."""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Iterator
from typing import Any

import click

from apportion.core.errors import ApportionError

TIMEOUT_S = 600.0
_HERE = ("127.0.0.1", "localhost", "::1", "0.0.0.0", "::")


class AskError(ApportionError):
    """The proxy cannot be reached, or answered with an error or with a broken stream."""

    code = "ask_failed"


@click.command("ask")
@click.argument("question")
@click.option("--model", help="Logical name. Default: `default` if there is one, else the first.")
@click.option("--system", help="A system message to put before the question.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="The most output tokens.")
@click.option("--max-usd", type=click.FloatRange(min=0), help="The most that the answer may cost.")
@click.option("--stream/--no-stream", default=True, show_default=True, help="Show the answer as it comes.")
@click.option("--json", "json_", is_flag=True, help="The answer, usage and decision as JSON, at the end.")
@click.option("--host", envvar="APPORTION_HOST", default="127.0.0.1", show_default=True, show_envvar=True)
@click.option("--port", envvar="APPORTION_PORT", type=int, default=8080, show_default=True, show_envvar=True)
@click.option(
    "--key",
    envvar="APPORTION_API_KEY",
    show_envvar=True,
    help="The key. A proxy of the same user on this machine needs none.",
)
def command(
    question: str,
    model: str | None,
    system: str | None,
    max_tokens: int | None,
    max_usd: float | None,
    stream: bool,
    json_: bool,
    host: str,
    port: int,
    key: str | None,
) -> None:
    """Ask a running proxy one QUESTION (`-` reads it from standard input).

    The answer goes to standard output; what it cost and why it was routed so, to standard error.
    """
    if question == "-":
        question = sys.stdin.read()
    proxy = Proxy(host, port, key or _local_key(host, port))
    messages = [{"role": "system", "content": system}] if system else []
    body: dict[str, Any] = {
        "model": model or proxy.first_model(),
        "messages": [*messages, {"role": "user", "content": question}],
        "stream": stream,
    }
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    if max_usd is not None:
        body["apportion"] = {"max_usd": max_usd}
    if stream:
        body["stream_options"] = {"include_usage": True}
    answer = Answer()
    try:
        for piece in proxy.ask(body, answer):
            if not json_:
                click.echo(piece, nl=False)
                sys.stdout.flush()
    except KeyboardInterrupt:
        click.echo()
        sys.exit(130)
    finally:
        if answer.text and not json_:
            click.echo()
    decision = proxy.decision(answer.decision_id) if answer.decision_id else None
    if json_:
        shown = {"model": body["model"], "answer": answer.text, "finish_reason": answer.finish_reason}
        click.echo(json.dumps({**shown, "usage": answer.usage, "decision": decision}, indent=2))
    else:
        click.echo(click.style(summary(answer, decision), dim=True), err=True)


def _local_key(host: str, port: int) -> str | None:
    """What a proxy on this machine tells its own user in place of a key."""
    if host not in _HERE:
        return None
    from apportion.serve.control import local_key

    return local_key(port)


class Answer:
    """What came back, filled while it comes."""

    def __init__(self) -> None:
        self.text = ""
        self.finish_reason: str | None = None
        self.usage: dict[str, Any] | None = None
        self.decision_id: str | None = None
        self.headers: dict[str, str] = {}


class Proxy:
    """A running proxy, called with `http.client`."""

    def __init__(self, host: str, port: int, key: str | None) -> None:
        self._host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        self._port = port
        self._headers = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
        if key:
            self._headers["authorization"] = f"Bearer {key}"

    def first_model(self) -> str:
        """`default` if the proxy has a model of that name, else its first."""
        names = [str(entry["id"]) for entry in self._json(self._call("GET", "/v1/models")).get("data", ())]
        if not names:
            raise AskError("The proxy has no model for this key.", field="model")
        return "default" if "default" in names else names[0]

    def decision(self, decision_id: str) -> dict[str, Any] | None:
        """The record of a decision; None if it is not kept."""
        try:
            return self._json(self._call("GET", f"/apportion/decisions/{decision_id}"))
        except AskError:
            return None

    def ask(self, body: dict[str, Any], answer: Answer) -> Iterator[str]:
        """The text of the answer, piece by piece; ``answer`` is filled meanwhile."""
        response = self._call("POST", "/v1/chat/completions", body)
        answer.headers = {name.lower(): value for name, value in response.getheaders()}
        answer.decision_id = answer.headers.get("x-apportion-decision-id")
        if not body["stream"]:
            yield from _take(self._json(response), "message", answer)
            return
        ended = False
        for data in self._events(response):
            if data == "[DONE]":
                ended = True
                break
            chunk = _chunk(data)
            if chunk.get("error"):
                raise AskError(f"The stream broke: {_message(chunk)}")
            yield from _take(chunk, "delta", answer)
        if not ended:
            raise AskError("The stream ended before the answer did.")

    def _events(self, response: http.client.HTTPResponse) -> Iterator[str]:
        try:
            for line in response:
                text = line.decode().rstrip("\r\n")
                if text.startswith("data:"):
                    yield text.removeprefix("data:").strip()
        except (OSError, http.client.HTTPException, UnicodeDecodeError) as error:
            raise AskError(f"The stream broke: {error or type(error).__name__}.") from None

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)
        try:
            connection.request(
                method, path, None if body is None else json.dumps(body).encode(), headers=self._headers
            )
            response = connection.getresponse()
        except OSError as error:
            raise AskError(
                f"No proxy answers on {self._host}:{self._port} ({error.strerror or error}).",
                field="port",
                fix="Start one with `apportion up`, or name its address with --host and --port.",
            ) from None
        except http.client.HTTPException as error:
            raise AskError(
                f"What answers on {self._host}:{self._port} is no proxy ({type(error).__name__})."
            ) from None
        if response.status != 200:
            detail = _message(self._json(response))
            fix = "Give the key with --key or APPORTION_API_KEY." if response.status == 401 else None
            raise AskError(f"The proxy answered {response.status}: {detail}", fix=fix)
        return response

    def _json(self, response: http.client.HTTPResponse) -> dict[str, Any]:
        try:
            found = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError):
            found = None
        if not isinstance(found, dict):
            raise AskError(f"The answer ({response.status}) is not the JSON of a proxy.")
        return found


def summary(answer: Answer, decision: dict[str, Any] | None) -> str:
    """One line: where the answer is from, how much it was and cost, how long it took; then why."""
    outcome = (decision or {}).get("outcome") or {}
    usage = answer.usage or {}
    parts = [
        f"{answer.headers.get('x-apportion-model', '?')} at {answer.headers.get('x-apportion-endpoint', '?')}"
    ]
    tokens = [
        f"{usage[name]} {word}"
        for name, word in (("prompt_tokens", "in"), ("completion_tokens", "out"))
        if name in usage
    ]
    if tokens:
        parts.append(f"{' + '.join(tokens)} tokens")
    cost, mark = outcome.get("cost_usd"), outcome.get("cost_mark")
    cost = cost if cost is not None else answer.headers.get("x-apportion-cost-usd")
    mark = mark or answer.headers.get("x-apportion-cost-mark")
    parts.append("cost unknown" if cost is None else f"${cost}{'' if mark == 'measured' else f' ({mark})'}")
    if outcome.get("duration_ms") is not None:
        parts.append(f"{outcome['duration_ms']:.0f} ms")
    if answer.finish_reason not in (None, "stop"):
        parts.append(f"ended by {answer.finish_reason}")
    why = (decision or {}).get("explanation")
    return " · ".join(parts) + (f"\n{why}" if why else "")


def _take(message: dict[str, Any], part: str, answer: Answer) -> Iterator[str]:
    """The text in a completion or one chunk of it."""
    if isinstance(message.get("usage"), dict):
        answer.usage = message["usage"]
    for choice in message.get("choices") or ():
        answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
        text = (choice.get(part) or {}).get("content")
        if text:
            answer.text += text
            yield text


def _chunk(data: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise AskError("The stream broke: an event is not a JSON object.")
    return found


def _message(body: dict[str, Any]) -> str:
    error = body.get("error")
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
